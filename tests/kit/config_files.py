"""Configuration files for tests: a small complete one, and the certificates that it names."""

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.config import (
    load,
)
from gateway.errors import ConfigError

PIN: Final = "ab" * 32


#: A small configuration, complete; the tests take it apart.
SMALL: Final = """
[[listeners]]
name = "kmip"
bind = "127.0.0.1:5696"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"
tls_policy = "modern"

[[backends]]
name = "atlanta-001"
address = "127.0.0.1:15696"
ca = "kms-ca.pem"
server_name = "localhost"

[[identities]]
name = "everyone"
match = { subject_cn = "*" }
shared = true
certificate = "gateway-client.pem"
private_key = "gateway-client.key"

[admin]
bind = "127.0.0.1:9696"
"""


#: Further tables, to be put behind SMALL.
SECOND_LISTENER: Final = """
[[listeners]]
name = "second"
bind = "127.0.0.1:5697"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"
"""


SECOND_BACKEND: Final = """
[[backends]]
name = "london-001"
address = "127.0.0.1:15697"
ca = "kms-ca.pem"
"""


SECOND_IDENTITY: Final = """
[[identities]]
name = "second"
match = { san_dns = "second.example.com" }
certificate = "second.pem"
private_key = "second.key"
"""


def make_pair(name: str, *, lasts: timedelta = timedelta(days=1)) -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its private key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + lasts
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private_pem(key, serialization.NoEncryption())


def private_pem(key: ec.EllipticCurvePrivateKey, protection: serialization.KeySerializationEncryption) -> bytes:
    """Return the key in PEM."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


@cache
def pair(name: str) -> tuple[bytes, bytes]:
    """Return a certificate and a key for files whose contents do not matter; the same pair for the same name."""
    return make_pair(name)


def put_certificates(folder: Path, text: str) -> None:
    """Make every certificate and key that a configuration names: NAME.key belongs to NAME.pem."""
    for name, suffix in re.findall(r'"(?!mark\.)([^"]+)\.(pem|key)"', text):  # the gateway makes mark.key itself
        (folder / name).parent.mkdir(exist_ok=True)
        file = folder / f"{name}.{suffix}"
        file.write_bytes(pair(name)[0 if suffix == "pem" else 1])
        file.chmod(0o644 if suffix == "pem" else 0o600)


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def mistakes_in(folder: Path, text: str) -> list[str]:
    """Return the mistakes of ``load`` without the path and the line, with which each mistake must begin."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert all(mistake.startswith(f"{path}: ") for mistake in refused.value.mistakes)
    assert all("\n" not in mistake for mistake in refused.value.mistakes)
    lines = [mistake.removeprefix(f"{path}: ").replace(str(folder), "DIR") for mistake in refused.value.mistakes]
    return [re.sub(r"^line \d+: ", "", line) for line in lines]


def changed(old: str, new: str, text: str = SMALL) -> str:
    """Return SMALL with a single replacement."""
    assert text.count(old) == 1, f"{old!r} should be there once"
    return text.replace(old, new)


def unfolded(text: str) -> list[str]:
    """Return the lines of a text; indented lines are joined to the line above."""
    return re.sub(r"\n +", " ", dedent(text).strip()).split("\n")


def put_second(folder: Path, *, lasts: timedelta) -> datetime:
    """Give the second identity a certificate of one year that ends after so long, and return the end."""
    certificate, key = make_pair("second", lasts=lasts)
    (folder / "second.pem").write_bytes(certificate)
    (folder / "second.key").write_bytes(key)
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
