"""Settings that belong to the kinds of credentials."""

from pathlib import Path

import pytest

from gateway.config import load
from gateway.config.credentials import BELONGS_TO, check_belongs, check_names_someone
from gateway.config.model import IdentityConfig
from tests.kit.authorities import Ca, write_secret
from tests.kit.config_files import SECOND_IDENTITY, SMALL, mistakes_in, unfolded, write

FILES = 'certificate = "second.pem"\nprivate_key = "second.key"\n'
MINTED = """
credential = "minted"
client_issuer = "clients.pem"
issuing_ca = "issuing.pem"
issuing_ca_key = "issuing.key"
"""


@pytest.fixture
def folder(folder: Path) -> Path:
    """A directory with a CA of clients, an issuing CA, and a password, besides the files of the small configuration."""
    Ca.make("clients").write(folder / "clients")
    Ca.make("issuing").write(folder / "issuing")
    Ca.make("no ca", is_ca=False).write(folder / "leaf")
    write_secret(folder / "password", "secret")
    (folder / "two.pem").write_bytes(Ca.make("a").pem + Ca.make("b").pem)
    return folder


def with_second(settings: str, files: str = FILES) -> str:
    """Return the small configuration with a second identity that has these settings."""
    return SMALL + SECOND_IDENTITY.replace(FILES, files) + settings


def test_a_fixed_credential_is_the_default(folder: Path) -> None:
    identity = load(write(folder, with_second(""))).identities[1]
    assert identity.credential == "fixed"
    assert identity.own_file == folder / "second.pem"
    assert identity.secret_files == {"private_key": folder / "second.key"}


def test_a_minted_credential_has_a_ca_and_no_certificate(folder: Path) -> None:
    text = with_second(MINTED, "").replace('subject_cn = "second"', 'subject_cn = "*"')
    identity = load(write(folder, text)).identities[1]
    assert not identity.shared
    assert identity.own_file == folder / "issuing.pem"
    assert identity.secret_files == {"issuing_ca_key": folder / "issuing.key"}


def test_a_password_has_a_certificate_and_a_file(folder: Path) -> None:
    text = with_second('credential = "password"\nusername = "app"\npassword_file = "password"\n')
    identity = load(write(folder, text)).identities[1]
    assert set(identity.secret_files) == {"private_key", "password_file"}
    assert "secret" not in repr(identity)


@pytest.mark.parametrize(
    ("settings", "files", "expected"),
    [
        ("", "", ["certificate: missing; add a line", "private_key: missing; add a line"]),
        (MINTED + "shared = true", "", ['shared: has no effect while credential is "minted"']),
        (MINTED, FILES, ['certificate: has no effect while credential is "minted"', "private_key: has no effect"]),
        (
            'credential = "minted"',
            "",
            ["client_issuer: missing", "issuing_ca: missing", "issuing_ca_key: missing"],
        ),
        (MINTED.replace('"clients', '"two'), "", ["client_issuer: DIR/two.pem holds CAs of 2 names"]),
        (MINTED.replace("issuing.", "leaf."), "", ["issuing_ca: DIR/leaf.pem begins with a certificate that is no CA"]),
        (MINTED.replace('"issuing.key', '"second.key'), "", ["issuing_ca_key: DIR/second.key does not belong"]),
        (MINTED + "minted_lifetime = 60", "", ["minted_lifetime: 60 is too little; give at least 300"]),
        (MINTED + 'minted_key = "dsa"', "", ['minted_key: "dsa" is not known; write "ec-p256"']),
        ("minted_lifetime = 600", FILES, ['minted_lifetime: has no effect while credential is "fixed"']),
        ('username = "app"', FILES, ['username: has no effect while credential is "fixed"; leave this line out']),
        ('client_credential = "pass"', FILES, ["client_credential: has no effect"]),
        ('credential = "password"', FILES, ["device: missing, as is username"]),
        (
            'credential = "password"\nusername = "a"\ndevice = { serial_number = "1" }\npassword_file = "password"',
            FILES,
            ["device: is given beside username"],
        ),
        ('credential = "password"\nusername = "a"', FILES, ["password_file: missing, and username is given"]),
        ('credential = "secret"', FILES, ['credential: "secret" is not known; write "fixed", "minted" or "password"']),
        (
            'credential = "password"\nusername = "a"\npassword_file = "none"',
            FILES,
            ["password_file: there is no file DIR/none"],
        ),
        ('credential = "password"\ndevice = { serial = "1" }', FILES, ['device.serial: unknown key "serial"']),
    ],
)
def test_a_setting_that_is_wrong_for_its_kind_is_a_mistake(
    folder: Path, settings: str, files: str, expected: list[str]
) -> None:
    found = mistakes_in(folder, with_second(settings + "\n", files))
    for mistake, text in zip(found, expected, strict=True):
        assert mistake.startswith(f'identities["second"].{text}'), mistake


def test_an_encrypted_issuing_key_names_its_own_setting(folder: Path) -> None:
    Ca.make("issuing").write(folder / "issuing", b"passphrase")
    assert mistakes_in(folder, with_second(MINTED, "")) == unfolded("""
        identities["second"].issuing_ca_key: DIR/issuing.key is encrypted; name a file with its passphrase in
            issuing_ca_passphrase_file, beside this setting
    """)


def test_every_setting_of_a_credential_is_one_of_the_model() -> None:
    assert set(BELONGS_TO) <= set(IdentityConfig.model_fields)


def test_a_setting_belongs_to_some_kinds() -> None:
    check_belongs("certificate", "password", is_given=True)
    check_belongs("issuing_ca", "fixed", is_given=False)
    with pytest.raises(ValueError, match="has no effect"):
        check_belongs("issuing_ca", "fixed", is_given=True)
    with pytest.raises(ValueError, match="missing"):
        check_belongs("issuing_ca", "minted", is_given=False)


def test_a_password_needs_a_user_or_a_device() -> None:
    check_names_someone("fixed", "", None)
    check_names_someone("password", "app", None)
    check_names_someone("password", "", {"serial_number": "1"})
    with pytest.raises(ValueError, match="missing"):
        check_names_someone("password", "", None)
