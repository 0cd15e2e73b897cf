"""Ed25519 by the cryptography package, imported only where a signature is made or checked."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def generate() -> tuple[bytes, bytes]:
    """Return a new private key in PEM, and its public key, 32 bytes."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, key.public_key().public_bytes_raw()


def sign(private_pem: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Return the signature, 64 bytes, and the public key; ValueError when the private key is none of Ed25519 in PEM."""
    try:
        key = serialization.load_pem_private_key(private_pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as exc:  # TypeError: it has a passphrase
        raise ValueError(str(exc)) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("is of another kind")  # noqa: TRY004  # the type is that of what was read
    return key.sign(message), key.public_key().public_bytes_raw()


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether the key signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
