"""Secrets from files: paths below systemd's credentials directory, passphrases, passwords, and private keys.

A secret never stands in the configuration itself, and an error names its file, never its value.
"""

import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.config.reading import read_file

_LONGEST_SECRET: Final = 1024  # bytes; OpenSSL takes no longer passphrase
_DIRECTORY: Final = re.compile(r"\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})/")
#: Contents of a PEM file, in words.
CERTIFICATES: Final = "certificates"
KEY: Final = "a private key"
_PEM: Final = re.compile(rb"^-----BEGIN ", re.MULTILINE)
_LABEL: Final = re.compile(rb"^-----BEGIN ([A-Z0-9 ]{1,40})-----", re.MULTILINE)
_PRIVATE_KEY_PEM: Final = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----", re.MULTILINE)


def resolved(folder: Path, text: str | Path) -> Path:
    """Return the path that a setting gives: absolute, or relative to ``folder``.

    ``$CREDENTIALS_DIRECTORY/NAME`` is a file that systemd hands over (``LoadCredential=``). Raises ValueError if there
    is no such directory.
    """
    begin = None if isinstance(text, Path) else _DIRECTORY.match(text)
    if begin is None:
        return folder / text
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            "begins with $CREDENTIALS_DIRECTORY, which is not set; have systemd start the gateway with"
            " LoadCredential=, or give the path of a file"
        )
    return Path(directory) / begin.string[begin.end() :]


def read_secret(path: Path) -> bytes:
    """Return the secret in a file, without the newline at its end. Raises ValueError with a text for the operator."""
    secret = read_file(path, "a file with the secret alone").removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ValueError(f"{path} is empty; write the secret into it")
    if len(secret) > _LONGEST_SECRET:
        raise ValueError(f"{path} has more than {_LONGEST_SECRET} bytes; give a file with the secret alone")
    try:
        secret.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; store the secret as UTF-8") from None
    if b"\0" in secret or b"\n" in secret:
        raise ValueError(f"{path} has several lines or a NUL; write the secret alone, on one line")
    return secret


def read_private_key(
    path: Path, passphrase_file: Path | None = None, *, setting: str = "passphrase_file"
) -> PrivateKeyTypes:
    """Read a file with a private key in PEM, encrypted if ``passphrase_file`` is given. Raises ValueError.

    ``setting`` is the name of the setting that gives ``passphrase_file``, or "" if there is none for this key.
    """
    data = read_pem(path, KEY)
    passphrase = None if passphrase_file is None else read_secret(passphrase_file)
    try:
        return load_pem_private_key(data, passphrase)
    except TypeError:  # the key is encrypted and there is no passphrase, or the other way round
        if passphrase is None and not setting:
            raise ValueError(
                f"{path} is encrypted, which is not supported here; store the key without a passphrase (`openssl pkey"
                " -in OLD -out NEW`)"
            ) from None
        if passphrase is None:
            raise ValueError(
                f"{path} is encrypted; name a file with its passphrase in {setting}, beside this setting"
            ) from None
        raise ValueError(
            f"{path} is not encrypted, but {passphrase_file} is given for it; encrypt the key, or leave the passphrase"
            " file out"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if passphrase is not None and b"ENCRYPTED" in data:
            raise ValueError(
                f"{path} can't be decrypted with the passphrase in {passphrase_file}; correct that file"
            ) from None
        raise ValueError(f"{path} {_why_no_key(data)}") from None


def _why_no_key(data: bytes) -> str:
    """Return why a PEM file has no usable private key, and what to do."""
    if b"BEGIN OPENSSH PRIVATE KEY" in data:
        return "holds a key for SSH; give the key of the TLS certificate, in PEM"
    if holds_private_key(data):
        return "holds a private key that is damaged, or of an unknown kind; copy it again, or make one of RSA or ECDSA"
    return f"has {labels_in(data)} and no private key; give the file of the private key, in PEM"


#: Version 3, and the begin of a sequence: so PKCS#12 begins (RFC 7292, section 4), after its own header.
_PKCS12: Final = bytes.fromhex("020103 30")
_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
#: Commands that make PEM of other formats, for a file of certificates and for one of a key.
_OF_PKCS12: Final = {
    CERTIFICATES: "`openssl pkcs12 -in FILE -nokeys -out CERTS.pem`",
    KEY: "`openssl pkcs12 -in FILE -nocerts -nodes -out KEY.pem`",
}
_OF_DER: Final = {
    CERTIFICATES: "`openssl x509 -inform DER -in FILE -out CERT.pem`",
    KEY: "`openssl pkey -inform DER -in FILE -out KEY.pem`",
}


def read_pem(path: Path, kind: str) -> bytes:
    """Return the contents of a PEM file. Raises ValueError with a text for the operator.

    ``kind`` is CERTIFICATES or KEY: what the file should hold.
    """
    data = read_file(path, f"a file in PEM with {kind}")
    if not _PEM.search(data):
        raise ValueError(f"{path} {_kind_of(data, kind)}")
    return data


def _kind_of(data: bytes, kind: str) -> str:
    """Return what a file holds that is not PEM, and what to do."""
    if not data.strip():
        return f"is empty; give a file in PEM with {kind}"
    if data.startswith(_BYTE_ORDER_MARKS):
        return "begins with a byte order mark, as some editors write it; save it as ASCII, without one"
    if data[:1] == b"0" and _PKCS12 in data[:16]:
        return f"is PKCS#12; convert it to PEM: {_OF_PKCS12[kind]}"
    if data[:1] == b"0":
        return f"is not PEM, but perhaps DER; convert it to PEM: {_OF_DER[kind]}"
    return f'is not PEM; give a file with {kind}, in which a line begins with "-----BEGIN "'


def labels_in(data: bytes) -> str:
    """Return the kinds of things in a PEM file, such as '"BEGIN CERTIFICATE REQUEST"'."""
    found = dict.fromkeys(f'"BEGIN {label.decode("ascii")}"' for label in _LABEL.findall(data))
    return " and ".join(found) or 'a line "-----BEGIN "'


def holds_private_key(data: bytes) -> bool:
    """Return True if a PEM file has a private key in it."""
    return _PRIVATE_KEY_PEM.search(data) is not None
