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


_CAPTURE: Final = (
    "a capture file: export what TCP carries, `tshark -r FILE -T fields -e tcp.payload`, and decode that; what TLS"
    " carries is encrypted, so that Wireshark needs the keys of the session"
)
_TLS: Final = "a TLS record, which is encrypted: decode the bytes inside of TLS"
#: Beginnings of files that are taken for KMIP by mistake.
_OTHERS: Final = (
    (b"\xd4\xc3\xb2\xa1", _CAPTURE),
    (b"\xa1\xb2\xc3\xd4", _CAPTURE),
    (b"\x4d\x3c\xb2\xa1", _CAPTURE),
    (b"\x0a\x0d\x0d\x0a", _CAPTURE),
    *((bytes((kind, 3)), _TLS) for kind in range(0x14, 0x18)),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x30\x82", "DER, a certificate or a key, and no KMIP message"),
    (b"-----BEGIN", "PEM, a certificate or a key, and no KMIP message"),
    (b"HTTP/", "an answer of HTTP, and no KMIP message"),
)


def ttlv_bytes(raw: bytes) -> bytes:
    """Return the bytes that ``raw`` stands for. Raises DecodeError if ``raw`` is in none of the forms."""
    _refuse_other(raw)
    found = _bytes_in(raw)
    _refuse_other(found)
    return found


def _refuse_other(data: bytes) -> None:
    """Raise DecodeError if the bytes begin as those of another format do."""
    for beginning, name in _OTHERS:
        if data.startswith(beginning):
            raise DecodeError(f"byte 0: this is {name}")


def _bytes_in(raw: bytes) -> bytes:
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
