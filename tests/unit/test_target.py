"""Brokers and certificate files: told without a secret, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeasd.errors import SettingsError
from edgeasd.publish.target import MqttTarget, TlsFiles, tls_context


def test_password_is_in_no_representation() -> None:
    target = MqttTarget("host", user="user", password="canary")
    assert target.password == "canary"
    assert "canary" not in f"{target} {target!r}"


def test_certificate_files_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    secure, plain = MqttTarget("host", tls=True), MqttTarget("host")
    with pytest.raises(SettingsError, match="cannot be used"):
        tls_context(secure, TlsFiles(ca_file=tmp_path / "missing.pem"))
    with pytest.raises(SettingsError, match="both"):
        tls_context(secure, TlsFiles(cert_file=tmp_path / "client.pem"))
    with pytest.raises(SettingsError, match="mqtts://"):
        tls_context(plain, TlsFiles())
    assert tls_context(plain, None) is None
