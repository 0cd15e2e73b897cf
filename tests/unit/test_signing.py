"""Where keys are trusted, only what one of them signed is loaded; whatever is odd about the keys trusts nothing."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeasd.bundle import read_bundle
from edgeasd.cli import main
from edgeasd.errors import BundleError, SettingsError
from edgeasd.signing import load_trust, parse_signature, signature_path
from tests.rig.touchy import Signer
from tests.small_bundle import write_small_bundle

Spoil = Callable[[Signer, Path], object]


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "signer")


def edgeasd(*arguments: object) -> int:
    """Run the command line; return its exit code."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exc:
        return int(exc.code or 0)


def spoil_signature(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(_signer: Signer, bundle: Path) -> None:
        path = signature_path(bundle)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.rename(path.parent.parent / "k")
    make(path)


def flip_a_bit(_signer: Signer, bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)


def sign_with_another_key(signer: Signer, bundle: Path) -> None:
    signer.sign(bundle, key=Signer(signer.folder / "other").key)


def claim_the_trusted_key(signer: Signer, bundle: Path) -> None:
    trusted = signature_path(bundle).read_bytes().splitlines()
    sign_with_another_key(signer, bundle)
    lines = signature_path(bundle).read_bytes().splitlines()
    signature_path(bundle).write_bytes(b"\n".join([lines[0], trusted[1], lines[2], b""]))


def take_an_old_one(signer: Signer, bundle: Path) -> None:
    shutil.copy(signature_path(signer.make()), signature_path(bundle))


HOSTILE_SIGNATURES: dict[str, tuple[Spoil, str]] = {
    "absent": (lambda _signer, bundle: signature_path(bundle).unlink(), "is not signed"),
    "altered_bundle": (flip_a_bit, "was altered"),
    "other_key": (sign_with_another_key, "is not among those in"),
    "other_key_under_a_trusted_id": (claim_the_trusted_key, "was altered"),
    "old": (take_an_old_one, "was altered"),
    "empty": (spoil_signature(lambda _: b""), "form that is not known"),
    "cut": (spoil_signature(lambda text: text[:-5]), "form that is not known"),
    "more_behind": (spoil_signature(lambda text: text + b"x"), "form that is not known"),
    "carriage_returns": (spoil_signature(lambda text: text.replace(b"\n", b"\r\n")), "form that is not known"),
    "later_format": (spoil_signature(lambda text: text.replace(b": 1\n", b": 2\n")), "form that is not known"),
    "minisign": (spoil_signature(lambda _: b"untrusted comment: x\nRWQ" + b"A" * 97 + b"\n"), "form that is not known"),
    "long": (spoil_signature(lambda text: text * 100), "longer than"),
    "directory": (
        lambda _signer, bundle: replace(signature_path(bundle), Path.mkdir),
        "not a file|Is a directory",
    ),
    "fifo": (
        lambda _signer, bundle: replace(signature_path(bundle), os.mkfifo),
        "not a file",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_SIGNATURES)
def test_what_no_trusted_key_signed_is_refused(signer: Signer, name: str) -> None:
    spoil, says = HOSTILE_SIGNATURES[name]
    bundle = signer.make()
    trust = load_trust(signer.trusted, required=False)
    assert read_bundle(bundle, trust=trust).signed_by == f"team (key {next(iter(trust.keys))})" if trust else False
    spoil(signer, bundle)
    with pytest.raises(BundleError, match=says) as caught:
        read_bundle(bundle, trust=trust)
    assert "\n" not in str(caught.value)


def replace_key(text: bytes) -> Callable[[Path], object]:
    return lambda key: key.write_bytes(text)


HOSTILE_KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "writable_by_all": (lambda key: key.chmod(0o666), "can be written by others; chmod go-w"),
    "writable_by_the_group": (lambda key: key.chmod(0o664), "can be written by others"),
    "open_directory": (lambda key: key.parent.chmod(0o777), "can be written by others"),
    "of_another_user": (lambda key: os.chown(key, 65534, -1), "belongs to neither root nor this user"),
    "empty": (replace_key(b""), "no Ed25519 public key"),
    "half": (lambda key: key.write_bytes(key.read_bytes()[:60]), "no Ed25519 public key"),
    "private": (lambda key: shutil.copy(key.parents[1] / "team.key", key), "no Ed25519 public key"),
    "binary": (replace_key(bytes(range(256))), "no Ed25519 public key"),
    "long": (replace_key(b"-" * 5000), "no Ed25519 public key"),
    "other_name": (lambda key: key.rename(key.with_suffix(".pem")), "their names end in .pub"),
    "link": (lambda key: replace(key, lambda path: path.symlink_to(path.parents[1] / "k")), "cannot be read"),
    "directory": (lambda key: replace(key, Path.mkdir), "Is a directory"),
    "fifo": (lambda key: replace(key, os.mkfifo), "is not a file"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize("name", HOSTILE_KEYS)
def test_a_key_that_cannot_be_relied_on_trusts_nothing(signer: Signer, name: str) -> None:
    spoil, says = HOSTILE_KEYS[name]
    spoil(signer.trusted / "team.pub")
    with pytest.raises(SettingsError, match=says) as caught:
        load_trust(signer.trusted, required=False)
    assert caught.value.exit_code == 78


def test_without_keys_nothing_is_asked_for_unless_the_directory_was_named(tmp_path: Path) -> None:
    empty = tmp_path / "trust.d"
    assert load_trust(empty, required=False) is None
    with pytest.raises(SettingsError, match="does not exist"):
        load_trust(empty, required=True)
    empty.mkdir(mode=0o755)
    assert load_trust(empty, required=False) is None
    trust = load_trust(empty, required=True)
    with pytest.raises(BundleError, match=r"only keys in .* are trusted"):
        read_bundle(write_small_bundle(tmp_path / "small.edgeasd"), trust=trust)


def test_the_commands_make_keys_sign_and_say_who_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bare_environment: None
) -> None:
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    key, config = tmp_path / "hall.key", tmp_path / "c.yaml"
    assert edgeasd("bundle", "keygen", key) == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert edgeasd("bundle", "keygen", key) == 73  # a key is never written over
    config.write_text("{}")
    assert edgeasd("bundle", "sign", bundle, "--key", tmp_path / "hall.pub") == 66
    assert edgeasd("bundle", "sign", bundle, "--key", key) == 0
    key_id = parse_signature(signature_path(bundle).read_bytes()).key_id
    assert edgeasd("bundle", "verify", bundle, "-c", config) == 0
    assert f"signed by key {key_id}, not verified: no keys are trusted here" in capsys.readouterr().out

    (tmp_path / "trust.d").mkdir(mode=0o755)
    (tmp_path / "hall.pub").rename(tmp_path / "trust.d" / "hall.pub")
    config.write_text("trusted_keys_dir: trust.d\n")
    assert edgeasd("bundle", "verify", bundle, "-c", config) == 0
    assert f"signed by hall (key {key_id})" in capsys.readouterr().out
    signature_path(bundle).unlink()
    for command in (["bundle", "verify", bundle], ["bundle", "install", bundle], ["check"]):
        config.write_text(f"trusted_keys_dir: trust.d\nbundle: {bundle}\nstate_dir: state\n")
        assert edgeasd(*command, "-c", config) == 65
    said = capsys.readouterr()
    assert said.err.count("is not signed, and only keys in") == 2
    assert not (tmp_path / "state").exists()


def test_keys_and_signatures_are_those_of_openssl(signer: Signer, tmp_path: Path) -> None:
    bundle = signer.make()
    message, raw = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(b"edgeasd bundle signature 1\n" + bytes.fromhex(read_bundle(bundle).sha256))
    raw.write_bytes(parse_signature(signature_path(bundle).read_bytes()).value)
    public = signer.trusted / "team.pub"
    done = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message, "-sigfile", raw],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Signature Verified Successfully" in done.stdout, done.stderr
