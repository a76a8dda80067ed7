"""Files with keys and tokens in text, one a line: of marks, of an audit trail, and for the metrics."""

import re
import shlex
from pathlib import Path
from typing import Final

from gateway.config.reading import read_file

_MARK_KEY: Final = re.compile(r"[0-9A-Fa-f]{64}")
#: Text for a file that must be left as it is: a remedy such as "write a key into it" would destroy it.
_IN_PEM: Final = "holds a certificate or a key in PEM, which must not be used here; name a file of its own"
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{32,1000}")  # RFC 6750 section 2.1: b64token


def _make_key(path: Path) -> str:
    """Return advice with the command that makes a file with a key or a token."""
    return f"make it with `(umask 077; openssl rand -hex 32 > {shlex.quote(str(path))})`"


def mark_keys(path: Path) -> list[bytes]:
    """Read a file of keys for marks, one a line, in hexadecimal digits. Raises ValueError, MissingFileError if none."""
    lines = read_file(path, "a file of keys").decode("ascii", "replace").split()
    wrong = [number for number, line in enumerate(lines, 1) if not _MARK_KEY.fullmatch(line)]
    if lines and lines[0] == "-----BEGIN":
        raise ValueError(f"{path} {_IN_PEM}, which the gateway makes if it is missing")
    if not lines or wrong:
        found = f"has no key in line {wrong[0]}" if wrong else "holds no keys for marks"
        raise ValueError(
            f"{path} {found}; give one key a line, of 64 hexadecimal digits (`openssl rand -hex 32`), or name a"
            " file that does not exist: the gateway makes it"
        )
    return [bytes.fromhex(line) for line in lines]


def audit_key(path: Path) -> bytes:
    """Read the key of an audit trail: 64 hexadecimal digits. Raises ValueError."""
    text = read_file(path, "a file with the key", if_missing=_make_key(path)).decode("ascii", "replace").strip()
    if text.startswith("-----BEGIN"):
        raise ValueError(f"{path} {_IN_PEM}")
    if not _MARK_KEY.fullmatch(text):
        raise ValueError(f"{path} holds no key; give a file of 64 hexadecimal digits (`openssl rand -hex 32`)")
    return bytes.fromhex(text)


def tokens_in(path: Path) -> list[str]:
    """Read a file of tokens, one a line. Raises ValueError with a text for the operator."""
    # ASCII, as all codecs here: Python loads the module of another, which a changed user may be unable to read
    data = read_file(path, "a file of tokens", if_missing=_make_key(path))
    lines = [line.rstrip("\r") for line in data.decode("ascii", "replace").split("\n")]
    found = [line for line in lines if line.strip()]
    if found and found[0].startswith("-----BEGIN"):
        raise ValueError(f"{path} {_IN_PEM}")
    wrong = [number for number, line in enumerate(lines, 1) if line.strip() and not _TOKEN.fullmatch(line)]
    if not found or wrong:
        what = f"has no token in line {wrong[0]}" if wrong else "holds no tokens"
        raise ValueError(
            f"{path} {what}; give one token a line, of at least 32 letters, digits or -._~+/= (`openssl rand -hex 32`)"
        )
    return found
