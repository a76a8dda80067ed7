"""Passwords of identities: from the configuration to the requests."""

from pathlib import Path
from typing import Any

import pytest

from gateway.config.model import DeviceConfig, IdentityConfig, MatchConfig
from gateway.kmip import compose
from gateway.kmip.decode import decode_request
from gateway.upstream.passwords import password_of

SECRET = "not-to-be-seen"


def identity(**settings: Any) -> IdentityConfig:
    match = MatchConfig(subject_cn=("a",))
    return IdentityConfig(name="a", match=match, certificate=Path("c"), private_key=Path("k"), **settings)


def sent(of: IdentityConfig) -> bytes:
    password = password_of(of)
    assert password is not None
    assert SECRET not in repr(password)
    return password.added_to(decode_request(compose.discover_versions())).frame


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return path


def test_an_identity_without_a_password_has_none() -> None:
    assert password_of(identity()) is None


def test_user_name_and_password_are_sent(file: Path) -> None:
    of = identity(credential="password", username="app", password_file=file, client_credential="pass")
    assert b"app" in sent(of)
    assert SECRET.encode() in sent(of)
    assert b"\n" not in sent(of)
    password = password_of(of)
    assert password is not None
    assert password.client_credential == "pass"


def test_a_device_is_sent_with_or_without_a_password(file: Path) -> None:
    device = DeviceConfig(serial_number="A-17")
    assert SECRET.encode() not in sent(identity(credential="password", device=device))
    assert SECRET.encode() in sent(identity(credential="password", device=device, password_file=file))


def test_a_file_that_has_gone_is_named(file: Path) -> None:
    of = identity(credential="password", username="app", password_file=file)
    file.unlink()
    with pytest.raises(ValueError, match=r"there is no file .*password"):
        password_of(of)
