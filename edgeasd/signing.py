"""Who made a bundle: detached Ed25519 signatures, and the keys a node trusts.

A signature lies beside its bundle as NAME.edgeasd.sig, three lines of text:

    edgeasd-signature: 1
    key: 16 hexadecimal digits, the start of the sha256 of the public key
    signature: base64 of 64 bytes

What is signed is not the file but the words of `_DOMAIN` and the file's sha256, so that a signature under anything else
can never pass for one of a bundle. Keys are Ed25519 in PEM, as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeasd.disk import read_small
from edgeasd.errors import BundleError, CannotWriteError, InputError, SettingsError

SIGNATURE_SUFFIX = ".sig"
KEY_SUFFIX = ".pub"
_MAX_SIGNATURE_BYTES = 1024
_MAX_KEY_BYTES = 4096
_MAX_KEYS = 64
_DOMAIN = b"edgeasd bundle signature 1\n"
_SIGNATURE = re.compile(rb"edgeasd-signature: 1\nkey: ([0-9a-f]{16})\nsignature: ([A-Za-z0-9+/]{86}==)\n")
_PUBLIC_PEM = re.compile(
    r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/]{59}=)\s+-----END PUBLIC KEY-----\s*", re.ASCII
)
_PUBLIC_DER = bytes.fromhex("302a300506032b6570032100")  # SubjectPublicKeyInfo of Ed25519; the 32 bytes follow
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Signature:
    """Which key signed, and what it gave."""

    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key under the name of its file."""

    name: str
    key_id: str
    public: bytes

    def __str__(self) -> str:
        return f"{self.name} (key {self.key_id})"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose bundles may be loaded; nobody's where there are no keys."""

    directory: Path
    keys: Mapping[str, TrustedKey]
    """By key id."""

    def signer(self, sha256: bytes, signature: bytes | None) -> TrustedKey:
        """Return the trusted key that signed a bundle of this digest; BundleError says why none did.

        `signature` is the content of the signature file, None where there is none.
        """
        if signature is None:
            raise BundleError(f"is not signed, and only keys in {self.directory} are trusted")
        claimed = parse_signature(signature)
        key = self.keys.get(claimed.key_id)
        if key is None:
            raise BundleError(f"is signed by key {claimed.key_id}, which is not among those in {self.directory}")
        if not _verified(key.public, claimed.value, sha256):
            raise BundleError(f"is not what {key} signed: it was altered, or the signature is of another file")
        return key


def signature_path(bundle: Path) -> Path:
    """Return where the signature of a bundle lies."""
    return bundle.with_name(bundle.name + SIGNATURE_SUFFIX)


def read_signature(bundle: Path) -> bytes | None:
    """Return the signature file beside a bundle, None where there is none; BundleError when it cannot be read."""
    try:
        return read_small(signature_path(bundle), max_bytes=_MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BundleError(f"its signature cannot be read: {exc.strerror}") from exc


def parse_signature(text: bytes) -> Signature:
    """Read a signature file; BundleError for any other form than the one documented above."""
    found = _SIGNATURE.fullmatch(text)
    if found is None:
        raise BundleError("has a signature file of a form that is not known, or cut short")
    return Signature(found[1].decode(), base64.b64decode(found[2]))


def load_trust(directory: Path, *, required: bool) -> Trust | None:
    """Read the trusted keys, files `NAME.pub`; None where there are none and none are required.

    SettingsError for a directory or key that is malformed, cannot be read, or that others than root and this user may
    write: then nothing is trusted. Whatever else lies in the directory is an error too, for it may be a key whose name
    was mistyped; names that begin with a dot are passed over.
    """
    try:
        _check_guarded(directory, directory.stat(), stat.S_ISDIR, "a directory")
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as exc:
        if required:
            raise SettingsError(f"trusted_keys_dir: {directory} does not exist") from exc
        return None
    except OSError as exc:
        raise SettingsError(f"trusted_keys_dir: {directory} cannot be read: {exc.strerror}") from exc
    if len(paths) > _MAX_KEYS:
        raise SettingsError(f"trusted_keys_dir: {directory} holds {len(paths)} files, the limit is {_MAX_KEYS}")
    keys = [_trusted_key(path) for path in paths]
    return Trust(directory, {key.key_id: key for key in keys}) if keys or required else None


def generate_key(private: Path) -> tuple[Path, str]:
    """Make a key pair: PEM in `private`, mode 0600, and beside it NAME.pub; return the public file and the key id.

    CannotWriteError when either exists already.
    """
    from edgeasd.ed25519 import generate  # noqa: PLC0415  # cryptography loads only where it is used

    secret, raw = generate()
    public = private.with_name(private.stem + KEY_SUFFIX)
    body = base64.b64encode(_PUBLIC_DER + raw).decode()
    _create(private, secret, 0o600)
    _create(public, f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode(), 0o644)
    return public, _key_id(raw)


def sign(sha256: bytes, key_file: Path) -> bytes:
    """Return the signature file for a bundle of this digest; InputError when the private key cannot be used."""
    from edgeasd.ed25519 import sign as sign_message  # noqa: PLC0415  # cryptography loads only where it is used

    try:
        value, public = sign_message(read_small(key_file, max_bytes=_MAX_KEY_BYTES), _DOMAIN + sha256)
    except OSError as exc:
        raise InputError(f"{key_file}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise InputError(f"{key_file}: is no Ed25519 private key in PEM without a passphrase") from exc
    return f"edgeasd-signature: 1\nkey: {_key_id(public)}\nsignature: {base64.b64encode(value).decode()}\n".encode()


def _verified(public: bytes, signature: bytes, sha256: bytes) -> bool:
    from edgeasd.ed25519 import verify  # noqa: PLC0415  # cryptography loads only where it is used

    return verify(public, signature, _DOMAIN + sha256)


def _trusted_key(path: Path) -> TrustedKey:
    if path.suffix != KEY_SUFFIX:
        raise SettingsError(f"trusted_keys_dir: {path} is no key: their names end in {KEY_SUFFIX}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check_guarded(path, os.fstat(descriptor), stat.S_ISREG, "a file")
            pem = file.read(_MAX_KEY_BYTES).decode("ascii", errors="replace")
    except OSError as exc:
        raise SettingsError(f"trusted_keys_dir: {path} cannot be read: {exc.strerror}") from exc
    found = _PUBLIC_PEM.fullmatch(pem)
    der = b"" if found is None else base64.b64decode(found[1])
    if len(der) != len(_PUBLIC_DER) + 32 or not der.startswith(_PUBLIC_DER):
        raise SettingsError(f"trusted_keys_dir: {path} is no Ed25519 public key in PEM")
    raw = der[len(_PUBLIC_DER) :]
    return TrustedKey(path.stem, _key_id(raw), raw)


def _check_guarded(path: Path, status: os.stat_result, is_kind: Callable[[int], bool], kind: str) -> None:
    """Refuse what others could put a key of theirs into."""
    if not is_kind(status.st_mode):
        raise SettingsError(f"trusted_keys_dir: {path} is not {kind}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise SettingsError(f"trusted_keys_dir: {path} can be written by others; chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise SettingsError(f"trusted_keys_dir: {path} belongs to neither root nor this user; chown root {path}")


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as exc:
        raise CannotWriteError(f"{path}: exists already; a key is never written over") from exc
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]
