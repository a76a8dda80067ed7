"""The forms in which a person may hand over TTLV."""

import base64
import subprocess
import textwrap

import pytest

from gateway.decoding.source import ttlv_bytes
from gateway.errors import DecodeError
from tests.kit.messages import get, request

MESSAGE = request(get())
HEX = MESSAGE.hex()

XXD = "00000000: 4200 7801 0000 0008 4200 7701 0000 0000  B.x.....B.w....."
HEXDUMP = "00000000  42 00 78 01 00 00 00 08  42 00 77 01 00 00 00 00  |B.x.....B.w.....|\n00000010"
TCPDUMP = "\t0x0000:  4200 7801 0000 0008 4200 7701 0000 0000  B.x.....B.w....."
OD = "000000 42 00 78 01 00 00 00 08 42 00 77 01 00 00 00 00\n000010"
WIRESHARK = "0000   42 00 78 01 00 00 00 08 42 00 77 01 00 00 00 00   B.x.....B.w....."
DUMPED = bytes.fromhex("42007801000000084200770100000000")


@pytest.mark.parametrize(
    "raw",
    [
        MESSAGE,
        HEX.encode(),
        HEX.upper().encode() + b"\n",
        MESSAGE.hex(" ").encode(),
        MESSAGE.hex(":").encode(),
        textwrap.fill(HEX, 60).encode(),
        MESSAGE.hex(" ", 4).encode(),
        f"0x{HEX}".encode(),
        base64.b64encode(MESSAGE),
        base64.encodebytes(MESSAGE),
        base64.urlsafe_b64encode(MESSAGE),
    ],
)
def test_each_form_gives_the_bytes(raw: bytes) -> None:
    assert ttlv_bytes(raw) == MESSAGE


@pytest.mark.parametrize("dump", [XXD, HEXDUMP, TCPDUMP, OD, WIRESHARK])
def test_a_hex_dump_gives_its_bytes(dump: str) -> None:
    assert ttlv_bytes(dump.encode()) == DUMPED


@pytest.mark.parametrize("command", [["od", "-A", "x", "-t", "x1", "-v"], ["od", "-A", "x", "-t", "x1z", "-v"]])
def test_a_dump_by_od_gives_its_bytes(command: list[str]) -> None:
    dump = subprocess.run(command, input=MESSAGE, capture_output=True, check=True).stdout
    assert ttlv_bytes(dump) == MESSAGE


def test_a_dump_in_two_parts_is_one_stream() -> None:
    assert ttlv_bytes(f"{XXD}\n{XXD}\n".encode()) == DUMPED * 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no bytes"),
        (b" \n", "no bytes"),
        (b"420", "no whole number of bytes"),
        (b"<RequestMessage/>", "neither hexadecimal digits, nor a hex dump, nor base64"),
    ],
)
def test_bytes_in_no_form_are_an_error(raw: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        ttlv_bytes(raw)


@pytest.mark.parametrize(
    ("raw", "advice"),
    [
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "tshark"),
        (b"\x0a\x0d\x0d\x0a" + bytes(20), "tshark"),
        (b"\x16\x03\x01\x02\x00" + bytes(20), "inside of TLS"),
        (b"16 03 01 02 00 01", "inside of TLS"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n", "PEM"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
    ],
)
def test_another_format_is_named_with_what_to_do(raw: bytes, advice: str) -> None:
    with pytest.raises(DecodeError, match=advice):
        ttlv_bytes(raw)
