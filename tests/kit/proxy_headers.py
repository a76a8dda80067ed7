"""PROXY headers, valid and malformed, of both versions."""

import ipaddress
import struct

from gateway.front.proxy_protocol import MAX_V2, V2_SIGNATURE


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    """Return a header of version 2; ``length`` replaces that of the body."""
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


TCP4 = ipaddress.ip_address("192.0.2.1").packed + ipaddress.ip_address("198.51.100.7").packed + b"\x1f\x90\x16\x40"
TCP6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed + b"\x1f\x90\x16\x40"
TLVS = b"\x04\x00\x03\x00\x00\x00" + b"\x20\x00\x05\x01\x00\x00\x00\x00"  # NOOP, and SSL without sub-TLVs

HEADERS: dict[str, tuple[bytes, tuple[str, int] | None]] = {
    "1, IPv4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 8080 5696\r\n", ("192.0.2.1", 8080)),
    "1, IPv4, longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ("255.255.255.255", 65535),
    ),
    "1, IPv6": (b"PROXY TCP6 2001:DB8:0:0::1 2001:db8::2 0 5696\r\n", ("2001:db8::1", 0)),
    "1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "1, unknown, longest": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None),
    "2, IPv4": (v2(0x21, 0x11, TCP4), ("192.0.2.1", 8080)),
    "2, IPv6": (v2(0x21, 0x21, TCP6), ("2001:db8::1", 8080)),
    "2, IPv4 with TLVs": (v2(0x21, 0x11, TCP4 + TLVS), ("192.0.2.1", 8080)),
    "2, longest": (v2(0x21, 0x21, TCP6 + bytes(MAX_V2 - 16 - 36)), ("2001:db8::1", 8080)),
    "2, local": (v2(0x20, 0x00, b""), None),
    "2, local with addresses": (v2(0x20, 0x11, TCP4), None),
    "2, unspecified": (v2(0x21, 0x00, TLVS), None),
    "2, Unix": (v2(0x21, 0x31, bytes(216)), None),
}

#: Each is malformed.
MALFORMED: dict[str, bytes] = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "lower case": b"proxy TCP4 192.0.2.1 198.51.100.7 1 2\r\n",
    "1, two spaces": b"PROXY  TCP4 192.0.2.1 198.51.100.7 1 2\r\n",
    "1, space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.7 1 2 \r\n",
    "1, no ports": b"PROXY TCP4 192.0.2.1 198.51.100.7\r\n",
    "1, leading zero": b"PROXY TCP4 192.0.02.1 198.51.100.7 1 2\r\n",
    "1, leading zero in a port": b"PROXY TCP4 192.0.2.1 198.51.100.7 01 2\r\n",
    "1, port above 65535": b"PROXY TCP4 192.0.2.1 198.51.100.7 1 65536\r\n",
    "1, negative port": b"PROXY TCP4 192.0.2.1 198.51.100.7 -1 2\r\n",
    "1, IPv6 as IPv4": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    "1, IPv4 as IPv6": b"PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n",
    "1, zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    "1, another protocol": b"PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n",
    "1, unknown in the middle": b"PROXY UNKNOWNX\r\n",
    "1, line feed within": b"PROXY UNKNOWN a\nb\r\n",
    "1, too long": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "1, without an end": b"PROXY UNKNOWN " + b"f" * 93,
    "2, version 1": v2(0x11, 0x11, TCP4),
    "2, unknown command": v2(0x22, 0x11, TCP4),
    "2, unknown family": v2(0x21, 0x41, TCP4),
    "2, unknown family of a local one": v2(0x20, 0xF1, b""),
    "2, datagrams": v2(0x21, 0x12, TCP4),
    "2, shorter than its addresses": v2(0x21, 0x11, TCP4[:11]),
    "2, IPv4's length for IPv6": v2(0x21, 0x21, TCP4),
    "2, too long": v2(0x21, 0x11, b"", MAX_V2 - 15),
    "2, longest length": v2(0x20, 0x00, b"", 0xFFFF),
    "2, signature broken": V2_SIGNATURE[:11] + b"\r" + b"\x21\x11\x00\x0c" + TCP4,
}
