"""The bytes in a file that a person hands over: TTLV as it is, hexadecimal digits, a hex dump, or base64."""

import base64
import binascii
import re
from typing import Final

from gateway.errors import DecodeError

_NOT_IN_TEXT: Final = re.compile(rb"[^\t\n\r\x20-\x7e]")
#: A line of a hex dump, as xxd, ``hexdump -C``, od, tcpdump and Wireshark write it: an offset, and up to 16 bytes.
_DUMP_LINE: Final = re.compile(
    r"\s*(?:0x)?(?P<offset>[0-9A-Fa-f]{4,8})(?::\s*|\s{1,3})"
    r"(?P<bytes>(?:[0-9A-Fa-f]{2} {0,3}){1,16})(?:\s.*|\|.*)?"
)
_IN_HEX: Final = re.compile(r"0x|[\s:,]")
_HEX: Final = re.compile(r"[0-9A-Fa-f]*")


def ttlv_bytes(raw: bytes) -> bytes:
    """Return the bytes that ``raw`` stands for. Raises DecodeError if ``raw`` is in none of the forms."""
    if not raw.strip():
        raise DecodeError("no bytes to decode")
    if _NOT_IN_TEXT.search(raw):
        return raw  # every message has such bytes in its first eight
    text = raw.decode("ascii")
    if (dumped := _from_dump(text)) is not None:
        return dumped
    digits = _IN_HEX.sub("", text)
    if _HEX.fullmatch(digits):
        if len(digits) % 2:
            raise DecodeError(f"{len(digits)} hexadecimal digits are no whole number of bytes")
        return bytes.fromhex(digits)
    try:
        return base64.b64decode("".join(text.split()).translate(str.maketrans("-_", "+/")), validate=True)
    except binascii.Error:
        raise DecodeError("the text is not TTLV: neither hexadecimal digits, nor a hex dump, nor base64") from None


def _from_dump(text: str) -> bytes | None:
    """Return the bytes of a hex dump, or None if ``text`` is none. An offset of 0 begins a further part."""
    found = bytearray()
    lines = [line for line in text.splitlines() if line.strip()]
    expected = 0
    for number, line in enumerate(lines):
        match = _DUMP_LINE.fullmatch(line)
        if match is None:
            if number == len(lines) - 1 and re.fullmatch(r"[0-9A-Fa-f]{4,8}", line.strip()) and found:
                break  # the last line of hexdump and od is the length
            return None
        if int(match["offset"], 16) not in {0, expected}:
            return None
        part = bytes.fromhex(match["bytes"].replace(" ", ""))
        expected = int(match["offset"], 16) + len(part)
        found += part
    return bytes(found)
