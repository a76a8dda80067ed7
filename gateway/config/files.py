"""Certificates, private keys, secrets and mark keys that a configuration names: found, read, and checked.

Files are checked only while a configuration file is loaded, and not if a table is built in code.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from gateway.config.crls import read_crls
from gateway.config.key_files import audit_key, mark_keys, tokens_in
from gateway.config.reading import MissingFileError
from gateway.config.secret_files import (
    CERTIFICATES,
    holds_private_key,
    labels_in,
    read_pem,
    read_private_key,
    read_secret,
    resolved,
)
from gateway.config.values import a_text

_LONGEST_SOCKET: Final = 107  # bytes of a path, sun_path without its last zero


class Loading(NamedTuple):
    """Context of a load: the directory in which relative paths begin, and the time of day."""

    folder: Path
    now: datetime


def certificates(path: Path) -> list[x509.Certificate]:
    """Read a file of certificates in PEM. Raises ValueError with a text for the operator."""
    data = read_pem(path, CERTIFICATES)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError(f"{path} {_why_no_certificates(data)}") from None


def _why_no_certificates(data: bytes) -> str:
    """Return why a PEM file has no usable certificates, and what to do."""
    labels = labels_in(data)
    if '"BEGIN CERTIFICATE"' in labels:
        return "holds a certificate that is cut off or damaged; copy it again"
    if holds_private_key(data):
        return "holds a private key; give a file of certificates in PEM"
    if "CERTIFICATE REQUEST" in labels:
        return "holds a request for a certificate; give the certificate that the CA has issued for it"
    if "PKCS7" in labels:
        return "is PKCS#7; convert it to PEM: `openssl pkcs7 -in FILE -print_certs -out CERTS.pem`"
    return f"has {labels} and no certificate; give a file of certificates in PEM"


def first_of(path: Path) -> x509.Certificate | Path:
    """Return the first certificate of a file; or the path, if the file can no longer be read."""
    try:
        return certificates(path)[0]
    except ValueError:
        return path


def trusted_by(path: Path) -> frozenset[x509.Certificate]:
    """Return the certificates of a CA file; none if the file can no longer be read."""
    try:
        return frozenset(certificates(path))
    except ValueError:
        return frozenset()


def public_key(path: Path, passphrase_file: Path | None = None, *, setting: str = "passphrase_file") -> bytes:
    """Read a file with a private key in PEM; return the public key that belongs to it. Raises ValueError.

    ``passphrase_file`` and ``setting`` are those of ``read_private_key``.
    """
    key = read_private_key(path, passphrase_file, setting=setting)
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_mark_keys(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"there is no directory {path.parent} to make this file in; make it, or correct the path")
    with suppress(MissingFileError):  # the gateway makes it at its start
        mark_keys(path)


def _check_audit_file(path: Path, info: ValidationInfo, _now: datetime) -> None:
    if info.data.get("to") == "file" and not path.parent.is_dir():
        raise ValueError(f"there is no directory {path.parent} to write this file in; make it, or correct the path")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the path of a file")
    if info.data.get("to") == "file":
        target, name = (path, "it") if path.exists() else (path.parent, path.parent)
        # a disk that became read-only must not stop the reload of a certificate: on_failure says what happens then
        if not os.access(target, os.W_OK) and not os.statvfs(target).f_flag & os.ST_RDONLY:
            raise ValueError(f"{path} can't be written; let the gateway's user write {name}")


def _check_audit_key(path: Path | None, _info: ValidationInfo, _now: datetime) -> None:
    if path is not None:
        audit_key(path)


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(info.context, Loading):
        return value if isinstance(value, Path) else Path(_path_text(value))
    if isinstance(value, Path):
        return info.context.folder / value
    return resolved(info.context.folder, _path_text(value))


def _path_text(value: object) -> str:
    if "-----BEGIN" in (text := a_text(value)):
        raise ValueError("holds the certificate or key itself; store it in a file and give the file's path")
    if "\0" in text:
        raise ValueError("holds a character that no path can have; correct the path")
    return text


def _only_when_loading(check: Callable[[Path, ValidationInfo, datetime], None]) -> AfterValidator:
    def checked(path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and isinstance(info.context, Loading):
            check(path, info, info.context.now)
        return path

    return AfterValidator(checked)


def _check_certificate(path: Path, _info: ValidationInfo, now: datetime) -> None:
    """Reject a chain with an expired certificate, as peers do."""
    certificates(path)  # raises ValueError if it can't be read
    if expired := expired_in(path, now):
        raise ValueError(f"{path} holds {expired}; renew it")


def _check_own_certificate(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    """Read the file. An expired certificate must not stop the other identities: see crosschecks and validity."""
    certificates(path)


def expired_in(path: Path, now: datetime) -> str:
    """Return which certificate of a chain has expired, and when; "" if none has, or if the file can't be read."""
    try:
        chain = certificates(path)
    except ValueError:
        return ""
    return next((_expired(certificate) for certificate in chain if certificate.not_valid_after_utc < now), "")


def _check_ca(path: Path, _info: ValidationInfo, now: datetime) -> None:
    """Reject a bundle only if all of its CAs have expired: it may keep an old CA beside the new one."""
    bundle = certificates(path)
    if all(certificate.not_valid_after_utc < now for certificate in bundle):
        raise ValueError(f"{path} holds {_expired(bundle[0])}, and none that is valid; renew it")


def _expired(certificate: x509.Certificate) -> str:
    return (
        f"the certificate {certificate.subject.rfc4514_string() or 'without a subject'},"
        f" which expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    )


def _check_private_key(path: Path, info: ValidationInfo, _now: datetime) -> None:
    """Check that the key belongs to the first certificate in the file of ``certificate``, the setting before it."""
    _check_key_of("certificate", "passphrase_file", path, info)


def _check_plain_key(path: Path, info: ValidationInfo, _now: datetime) -> None:
    """Check that a key without a passphrase belongs to the certificate before it."""
    _check_pair(info.data.get("certificate"), path, public_key(path, setting=""))


def _check_issuing_key(path: Path, info: ValidationInfo, _now: datetime) -> None:
    """Check that the key belongs to the first certificate in the file of ``issuing_ca``, the setting before it."""
    _check_key_of("issuing_ca", "issuing_ca_passphrase_file", path, info)


def _check_key_of(certificate: str, passphrase: str, path: Path, info: ValidationInfo) -> None:
    """Check a key against the settings before it, unless one of them is a mistake of its own."""
    if passphrase not in info.data:
        return
    _check_pair(info.data.get(certificate), path, public_key(path, info.data[passphrase], setting=passphrase))


def _check_pair(beside: Path | None, path: Path, own: bytes) -> None:
    """Check that the public key of the key in ``path`` is that of the first certificate in ``beside``."""
    if beside is None:
        return
    chain = [_public_key_of(certificate) for certificate in certificates(beside)]
    if own in chain[1:] and own != chain[0]:
        raise ValueError(
            f"{path} does not belong to the first certificate in {beside}; put the key's certificate first"
        )
    if own != chain[0]:
        raise ValueError(f"{path} does not belong to the certificate in {beside}; give the key of that certificate")


def _public_key_of(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""  # no private key that is accepted here can belong to such a key


def _paths(value: object, info: ValidationInfo) -> tuple[Path, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(_path(each, info) for each in values))


def _check_crls(of_ca: str) -> AfterValidator:
    """Return a check of CRLs against the CA file of the setting ``of_ca``, which stands before."""

    def checked(paths: tuple[Path, ...], info: ValidationInfo) -> tuple[Path, ...]:
        if not (paths and isinstance(info.context, Loading)):
            return paths
        if (ca := info.data.get(of_ca)) is not None:
            read_crls(paths, certificates(ca), ca, with_serials=False)
        elif of_ca in info.data:
            raise ValueError(
                f"has no effect without {of_ca}, whose CAs sign the CRLs; give that, or leave this line out"
            )
        return paths

    return AfterValidator(checked)


#: Files of CRLs, one or a list; after ``client_ca``, or after ``ca``.
ClientCrlFiles = Annotated[tuple[Path, ...], BeforeValidator(_paths), _check_crls("client_ca")]
BackendCrlFiles = Annotated[tuple[Path, ...], BeforeValidator(_paths), _check_crls("ca")]


def _path_or_none(value: object, info: ValidationInfo) -> Path | None:
    return None if value is None or value == "" else _path(value, info)


def _check_tokens(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    tokens_in(path)


def _check_socket(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    """Reject a path that is longer than the kernel takes for a Unix socket, and one of another thing."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise ValueError(f"{path} is too long for a socket; give a path of at most {_LONGEST_SOCKET} bytes")
    if path.exists() and not path.is_socket():
        raise ValueError(f"{path} exists and is not a socket; choose another path, in a directory of the gateway's own")


def _check_secret(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    read_secret(path)


def _check_issuing_ca(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    """Reject a file whose first certificate may not issue certificates. Expiry is a warning: see validity."""
    own = certificates(path)[0]
    try:
        extensions = own.extensions
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise ValueError(
            f"{path} begins with a certificate that is no CA (basicConstraints CA:true); give the certificate of the CA"
            " that issues the clients' certificates for the key managers"
        )
    with suppress(x509.ExtensionNotFound):
        if not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            raise ValueError(
                f"{path} begins with a CA whose key usage has no keyCertSign; issue it again with keyCertSign"
            )


def _check_client_issuer(path: Path, _info: ValidationInfo, _now: datetime) -> None:
    """Reject a file with CAs of several names: the rule is for the clients of one issuer."""
    names = {certificate.subject.public_bytes() for certificate in certificates(path)}
    if len(names) > 1:
        raise ValueError(
            f"{path} holds CAs of {len(names)} names; give the one CA that issued these clients' certificates (in two"
            " certificates while its key changes), and a rule with an issuing CA of its own for each other CA"
        )


CertificateFile = Annotated[Path, BeforeValidator(_path), _only_when_loading(_check_certificate)]
CaFile = Annotated[Path, BeforeValidator(_path), _only_when_loading(_check_ca)]
#: The path of a Unix socket; "" is None.
SocketFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_socket)]
AuditFile = Annotated[Path, BeforeValidator(_path), _only_when_loading(_check_audit_file)]
#: The file of a key; "" is None.
AuditKeyFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_audit_key)]
#: The path of a Unix socket of another program.
PeerSocket = Annotated[Path, BeforeValidator(_path)]
MarkKeyFile = Annotated[Path, BeforeValidator(_path), _only_when_loading(_check_mark_keys)]
#: Stands after settings named ``certificate`` and ``passphrase_file``.
PrivateKeyFile = Annotated[Path, BeforeValidator(_path), _only_when_loading(_check_private_key)]

#: As the types above; "" is None. The key has no passphrase.
MaybeCertificateFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_certificate)]
MaybePrivateKeyFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_plain_key)]
MaybeCaFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_ca)]
MaybeTokenFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_tokens)]

# Files of identities: which of them are needed depends on the kind of the credential. "" is None.
#: The certificate that the gateway shows the key managers for an identity, and its key.
OwnCertificateFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_own_certificate)]
OwnKeyFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_private_key)]
#: The CA of the certificates that the gateway mints, and its key.
IssuingCaFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_issuing_ca)]
IssuingKeyFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_issuing_key)]
ClientIssuerFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_client_issuer)]
#: A passphrase or a password.
SecretFile = Annotated[Path | None, BeforeValidator(_path_or_none), _only_when_loading(_check_secret)]
