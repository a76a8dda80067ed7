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

_LONGEST_SECRET: Final = 1024  # bytes; OpenSSL takes no longer passphrase
_DIRECTORY: Final = re.compile(r"\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})/")
_PEM: Final = re.compile(rb"^-----BEGIN ", re.MULTILINE)
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
    secret = _read(path, "a text").removesuffix(b"\n").removesuffix(b"\r")
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
    data = read_pem(path)
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
        found = "holds no private key that can be read" if _PRIVATE_KEY_PEM.search(data) else "holds no private key"
        raise ValueError(f"{path} {found}; give a file with a private key in PEM") from None


#: Version 3, and the begin of a sequence: so PKCS#12 begins (RFC 7292, section 4), after its own header.
_PKCS12: Final = bytes.fromhex("020103 30")


def read_pem(path: Path) -> bytes:
    """Return the contents of a PEM file. Raises ValueError with a text for the operator."""
    data = _read(path, "a file in PEM")
    if not _PEM.search(data):
        raise ValueError(f"{path} {_kind_of(data)}")
    return data


def _kind_of(data: bytes) -> str:
    """Return what a file holds that is not PEM, and what to do."""
    if not data.strip():
        return "is empty; give a file in PEM"
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "begins with a byte order mark, as some editors write it; save it as ASCII, without one"
    if data[:1] == b"0" and _PKCS12 in data[:16]:
        return (
            "is PKCS#12; convert it to PEM (certificates: `openssl pkcs12 -in FILE -nokeys -out CERTS.pem`; "
            "key: `openssl pkcs12 -in FILE -nocerts -out KEY.pem`, its passphrase into passphrase_file)"
        )
    return (
        "is not PEM; give a file in PEM, or convert one in DER (certificate: `openssl x509 -inform DER -in FILE "
        "-out CERT.pem`; key: `openssl pkey -inform DER -in FILE -out KEY.pem`)"
    )


def holds_private_key(data: bytes) -> bool:
    """Return True if a PEM file has a private key in it."""
    return _PRIVATE_KEY_PEM.search(data) is not None


def _read(path: Path, kind: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; give the path of {kind}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; correct the path, which is relative to this file") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); let the gateway's user read it") from None
