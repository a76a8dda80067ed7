"""Chain: the sequence number and the hash of each line, so that a missing or changed line is found.

A line of the trail is a JSON object in the form

    {"seq":17,"time":"...", ... ,"hash":"<64 hexadecimal digits>"}

The hash is SHA-256 over the hash of the line before (as digits; 64 zeros before the first line of a chain), followed by
the bytes of this line up to ``,"hash"``. With a key, HMAC-SHA-256 takes the place of SHA-256, and ``hmac`` is the name
of the field. Bytes are hashed, so that no rule for the spelling of JSON is needed.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Final, NamedTuple

BEGINNING: Final = "0" * 64  # takes the place of the hash before the first line of a chain
_LINE: Final = re.compile(rb'(\{"seq":([1-9][0-9]{0,18}),.*),"(hash|hmac)":"([0-9a-f]{64})"\}', re.DOTALL)


class Sealed(NamedTuple):
    """A line taken apart: the bytes that its hash covers, its number, the name of the hash's field, and the hash."""

    content: bytes
    sequence: int
    field: str
    digest: str


def parse(line: bytes) -> Sealed | None:
    """Take a line apart, without its line feed; return None if it has not the form of a line of the trail."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    content, sequence, field, digest = found.groups()
    return Sealed(content, int(sequence), field.decode(), digest.decode())


def field_of(key: bytes | None) -> str:
    """Return the name of the field that holds the hash: ``hmac`` with a key, ``hash`` without."""
    return "hash" if key is None else "hmac"


def hasher(key: bytes | None) -> Callable[[bytes], str]:
    """Return the function that computes a hash of bytes, as 64 hexadecimal digits."""
    if key is None:
        return lambda data: hashlib.sha256(data).hexdigest()
    return lambda data: hmac.digest(key, data, "sha256").hex()


class Chain:
    """The state of a chain: ``sequence`` and ``last`` are the number and the hash of its last line."""

    def __init__(self, key: bytes | None = None) -> None:
        self.sequence = 0
        self.last = BEGINNING
        self._hash = hasher(key)
        self._field = f',"{field_of(key)}":"'

    def __repr__(self) -> str:
        return f"<Chain, {self.sequence} lines>"

    def go_on(self, sequence: int, last: str) -> None:
        """Continue the chain behind a line with this number and hash."""
        self.sequence, self.last = sequence, last

    def seal(self, fields: str) -> bytes:
        """Return the next line. ``fields`` are the members of its object, in ASCII, without ``seq`` and the hash."""
        self.sequence += 1
        content = f'{{"seq":{self.sequence},{fields}'
        self.last = self._hash(f"{self.last}{content}".encode())
        return f'{content}{self._field}{self.last}"}}\n'.encode()
