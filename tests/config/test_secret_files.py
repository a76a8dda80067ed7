"""Secrets in files: systemd's credentials directory, passphrases, passwords and private keys."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.config import load
from gateway.config.secret_files import read_private_key, read_secret, resolved
from tests.kit.authorities import write_secret
from tests.kit.config_files import SMALL, changed, mistakes_in, private_pem, unfolded, write

PASSPHRASE = b"not-to-be-repeated"
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("text", ["$CREDENTIALS_DIRECTORY/app.key", "${CREDENTIALS_DIRECTORY}/app.key"])
def test_a_file_of_systemd_is_in_its_directory(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/kmip-gateway.service")
    assert resolved(Path("/etc"), text) == Path("/run/credentials/kmip-gateway.service/app.key")
    assert resolved(Path("/etc"), "app.key") == Path("/etc/app.key")
    assert resolved(Path("/etc"), "/app.key") == Path("/app.key")
    assert resolved(Path("/etc"), "$OTHER/app.key") == Path("/etc/$OTHER/app.key")


def test_a_file_of_systemd_without_systemd_is_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert mistakes_in(folder, changed('"server.key"', '"$CREDENTIALS_DIRECTORY/server.key"')) == unfolded("""
        listeners["kmip"].private_key: begins with $CREDENTIALS_DIRECTORY, which is not set; have systemd start the
            gateway with LoadCredential=, or give the path of a file
    """)


def test_all_files_may_be_of_systemd(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    text = SMALL.replace('.pem"', '.pem" ').replace(' = "', ' = "$CREDENTIALS_DIRECTORY/')
    for name in ("kmip", "127", "modern", "atlanta", "localhost", "everyone"):
        text = text.replace(f"$CREDENTIALS_DIRECTORY/{name}", name)
    config = load(write(elsewhere, text.replace('{ subject_cn = "$CREDENTIALS_DIRECTORY/*"', '{ subject_cn = "*"')))
    assert config.identities[0].private_key == folder / "gateway-client.key"


def test_a_secret_is_the_text_without_its_last_newline(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for data, secret in (
        (b"a b", b"a b"),
        (b"a\n", b"a"),
        (b"a\r\n", b"a"),
        (b" a \n", b" a "),
        ("ü".encode(), "ü".encode()),
    ):
        file.write_bytes(data)
        assert read_secret(file) == secret


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; write the secret into it"),
        (b"\n", "is empty; write the secret into it"),
        (b"a\nb\n", "has several lines or a NUL; write the secret alone, on one line"),
        (b"a\0b", "has several lines or a NUL; write the secret alone, on one line"),
        (b"\xff", "is not UTF-8; store the secret as UTF-8"),
        (b"a" * 1025, "has more than 1024 bytes; give a file with the secret alone"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=str(file)) as refused:
        read_secret(file)
    assert str(refused.value) == f"{file} {said}"


def put(folder: Path, *, passphrase: bytes | None = PASSPHRASE, key_passphrase: bytes | None = PASSPHRASE) -> str:
    """Give the listener an encrypted key and a passphrase file; return the configuration."""
    key = (folder / "server.key").read_bytes()
    loaded = serialization.load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    if key_passphrase is not None:
        (folder / "server.key").write_bytes(private_pem(loaded, serialization.BestAvailableEncryption(key_passphrase)))
    if passphrase is not None:
        write_secret(folder / "passphrase", passphrase + b"\n")
    return changed('"server.key"', '"server.key"\npassphrase_file = "passphrase"')


def test_an_encrypted_key_is_read_with_its_passphrase(folder: Path) -> None:
    config = load(write(folder, put(folder)))
    listener = config.listeners[0]
    assert read_private_key(listener.private_key, listener.passphrase_file).public_key() is not None


def test_a_wrong_passphrase_is_a_mistake_and_not_repeated(folder: Path) -> None:
    (mistake,) = mistakes_in(folder, put(folder, passphrase=b"another"))
    assert mistake == (
        'listeners["kmip"].private_key: DIR/server.key can\'t be decrypted with the passphrase in DIR/passphrase;'
        " correct that file"
    )


def test_a_passphrase_for_a_plain_key_is_a_mistake(folder: Path) -> None:
    assert mistakes_in(folder, put(folder, key_passphrase=None)) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key is not encrypted, but DIR/passphrase is given for it; encrypt the
            key, or leave the passphrase file out
    """)


def test_a_missing_passphrase_file_is_one_mistake(folder: Path) -> None:
    (mistake,) = mistakes_in(folder, put(folder, passphrase=None))
    assert mistake.startswith('listeners["kmip"].passphrase_file: there is no file DIR/passphrase')
