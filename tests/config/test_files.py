"""Certificates, private keys and mark keys that a configuration names."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.config import (
    load,
)
from gateway.errors import ConfigError
from tests.kit.config_files import (
    SMALL,
    changed,
    make_pair,
    mistakes_in,
    pair,
    private_pem,
    unfolded,
    write,
)


def test_a_bundle_may_keep_an_expired_ca_beside_a_valid_one(folder: Path) -> None:
    old, _ = make_pair("old CA", lasts=-timedelta(days=1))
    (folder / "kms-ca.pem").write_bytes(old + pair("kms-ca")[0])
    load(write(folder, SMALL))


def test_a_key_may_be_in_the_file_of_its_certificate(folder: Path) -> None:
    (folder / "server.pem").write_bytes(b"".join(pair("server")))
    (folder / "server.pem").chmod(0o600)
    load(write(folder, changed('"server.key"', '"server.pem"')))


def test_an_expired_certificate_is_refused(folder: Path) -> None:
    expired, key = make_pair("gateway", lasts=-timedelta(days=2))
    (folder / "server.pem").write_bytes(expired)
    (folder / "server.key").write_bytes(key)
    (folder / "kms-ca.pem").write_bytes(expired)
    day = f"{x509.load_pem_x509_certificate(expired).not_valid_after_utc:%Y-%m-%d}"
    assert mistakes_in(folder, SMALL) == unfolded(f"""
        listeners["kmip"].certificate: DIR/server.pem holds the certificate CN=gateway, which expired on {day};
            renew it
        backends["atlanta-001"].ca: DIR/kms-ca.pem holds the certificate CN=gateway, which expired on {day}, and
            none that is valid; renew it
    """)


def test_an_expired_certificate_up_the_chain_is_refused(folder: Path) -> None:
    expired, _ = make_pair("intermediate CA", lasts=-timedelta(days=2))
    (folder / "server.pem").write_bytes(pair("server")[0] + expired)
    assert "holds the certificate CN=intermediate CA, which expired" in mistakes_in(folder, SMALL)[0]


def test_a_chain_in_the_wrong_order_is_refused(folder: Path) -> None:
    (folder / "server.pem").write_bytes(pair("clients-ca")[0] + pair("server")[0])
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key does not belong to the first certificate in DIR/server.pem;
            put the key's certificate first
    """)


def test_an_encrypted_key_without_a_passphrase_file_is_refused(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "server.key").write_bytes(private_pem(key, serialization.BestAvailableEncryption(b"password")))
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key is encrypted; name a file with its passphrase in
            passphrase_file, beside this setting
    """)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "DIR/kms-ca.pem is empty; give a file in PEM with certificates"),
        (b"\x30\x82\x01\x01", "DIR/kms-ca.pem is not PEM"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "holds a certificate that is cut off or damaged",
        ),
        (b"-----BEGIN CERTIFICATE-----\nAA", "holds a certificate that is cut off or damaged"),
    ],
)
def test_a_file_without_a_certificate_is_refused(folder: Path, data: bytes, expected: str) -> None:
    (folder / "kms-ca.pem").write_bytes(data)
    (mistake,) = mistakes_in(folder, SMALL)
    assert expected in mistake


def test_a_broken_key_is_refused_and_not_shown(folder: Path) -> None:
    (folder / "server.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n")
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key holds a private key that is damaged, or of an unknown
            kind; copy it again, or make one of RSA or ECDSA
    """)


def test_the_mark_key_file_need_not_exist(folder: Path) -> None:
    assert load(write(folder, SMALL)).replication.mark_key_file == folder / "mark.key"
    (folder / "secrets").mkdir()
    named = load(write(folder, SMALL + '[replication]\nmark_key_file = "secrets/marks"\n'))
    assert named.replication.mark_key_file == folder / "secrets" / "marks"


def test_a_mark_key_file_needs_an_existing_directory(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no directory .*/nodir to make this file in; make it, or correct"):
        load(write(folder, SMALL + '[replication]\nmark_key_file = "nodir/mark.key"\n'))
