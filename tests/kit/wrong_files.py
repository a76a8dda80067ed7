"""Files that an operator may give by mistake in the place of a certificate, a key or another file, by their kinds."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import NameOID
from kmip_lab.certs import Authority, Credential

from tests.kit.authorities import Ca
from tests.kit.config_files import pair, private_pem

PASSPHRASE: Final = b"passphrase"
_PEM: Final = serialization.Encoding.PEM
_DER: Final = serialization.Encoding.DER


@cache
def _server() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, key = pair("server")
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(certificate), private


@cache
def _authority() -> Authority:
    return Authority("Example CA", "ecdsa")


@cache
def _client() -> Credential:
    return _authority().issue_client("app-1")


@cache
def _issued_server() -> Credential:
    return _authority().issue_server("gateway")


@cache
def _weak() -> Ca:
    return Ca.make("Weak CA", key=rsa.generate_private_key(65537, 1024))  # noqa: S505 - that is the point


@cache
def _issuing() -> Ca:
    return Ca.make("Issuing CA", issuer=Ca.make("Root CA"))


def _pkcs12() -> bytes:
    certificate, key = _server()
    protection = serialization.BestAvailableEncryption(PASSPHRASE)
    return pkcs12.serialize_key_and_certificates(b"server", key, certificate, None, protection)


def _request() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_server()[1], hashes.SHA256())
    return request.public_bytes(_PEM)


#: The contents of each kind of file. "server" is the certificate that the small configuration names, and its key.
CONTENTS: Final[dict[str, Callable[[], bytes]]] = {
    "empty": lambda: b"",
    "bom": lambda: b"\xef\xbb\xbf" + pair("server")[0],
    "utf-16": lambda: pair("server")[0].decode().encode("utf-16"),
    "der": lambda: _server()[0].public_bytes(_DER),
    "der-key": lambda: _server()[1].private_bytes(
        _DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "pkcs12": _pkcs12,
    "pkcs7": lambda: pkcs7.serialize_certificates([_server()[0]], _PEM),
    "key": lambda: pair("server")[1],
    "public-key": lambda: _server()[1].public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    "encrypted-key": lambda: private_pem(_server()[1], serialization.BestAvailableEncryption(PASSPHRASE)),
    "ssh-key": lambda: b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
    "damaged-key": lambda: b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n",
    "two-keys": lambda: pair("other")[1] + pair("server")[1],
    "certificate": lambda: pair("server")[0],
    "cut-certificate": lambda: pair("server")[0][:200],
    "request": _request,
    "crl": lambda: b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    "page": lambda: b"<html>404 Not Found</html>\n",
    "client-certificate": lambda: _client().certificate_pem,
    "client-key": lambda: _client().private_key_pem,
    "server-certificate": lambda: _issued_server().certificate_pem,
    "server-key": lambda: _issued_server().private_key_pem,
    "issuing-ca": lambda: _issuing().pem,
    "weak-certificate": lambda: _weak().pem,
    "weak-key": lambda: private_pem(_weak().key, serialization.NoEncryption()),  # type: ignore[arg-type]
    "unrelated-chain": lambda: pair("server")[0] + pair("kms-ca")[0],
    "reversed-chain": lambda: pair("clients-ca")[0] + pair("server")[0],
    "passphrase": lambda: PASSPHRASE + b"\n",
    "wrong-passphrase": lambda: b"another\n",
    "two-lines": lambda: b"one\ntwo\n",
    "hexadecimal": lambda: b"ab" * 32 + b"\n",
}


def put(path: Path, kind: str) -> None:
    """Put a file of a kind at a path; besides those of CONTENTS, the kinds of other things that a path may name."""
    path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "looping-link":
            path.symlink_to(path.name)
        case "broken-link":
            path.symlink_to("gone")
        case "large":
            path.touch()
            os.truncate(path, 16 * 1024 * 1024 + 1)
        case "readable-key":
            path.write_bytes(pair("server")[1])
            path.chmod(0o644)
        case "writable-certificate":
            path.write_bytes(pair("server")[0])
            path.chmod(0o666)
        case _:
            path.write_bytes(CONTENTS[kind]())
            path.chmod(0o600)
