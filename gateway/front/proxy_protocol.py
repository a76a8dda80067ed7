"""The PROXY protocol, versions 1 and 2: the header that a load balancer sends ahead of a client's bytes.

Section numbers are those of HAProxy's proxy-protocol.txt, the specification. This module parses bytes and does no I/O.
A receiver must not guess whether there is a header (section 2): a listener either requires it or does not read it.
"""

import ipaddress
import re
import struct
from typing import Final, NamedTuple

from gateway.errors import GatewayError

#: Section 2.1: the longest line of version 1, with its CRLF.
MAX_V1: Final = 107
#: Section 2.2: a header of version 2 may be 16 + 65535 bytes, and should fit into 536. Balancers that add the client's
#: certificate (PP2_SUBTYPE_SSL_CLIENT_CERT) exceed 536. This bound limits the memory for an unknown client.
MAX_V2: Final = 4096

V1_BEGINNING: Final = b"PROXY "
#: Section 2.2: 12 bytes with which no other protocol begins.
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = struct.Struct("!12sBBH")  # signature, version and command, family and protocol, length

_LOCAL, _PROXY = 0x20, 0x21  # section 2.2: version 2 in the upper four bits, the command in the lower four
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
#: Section 2.2: the bytes of the addresses of each family. Datagrams (0x12, 0x22, 0x32) can't arrive over TCP.
_ADDRESSES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}

#: Section 2.1: fields are separated by exactly one space, and numbers have no leading zeros.
_V1_LINE: Final = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


class ProxyHeaderError(GatewayError):
    """The bytes are no PROXY header, or a header that the specification forbids."""


class ProxyHeader(NamedTuple):
    """A whole header. ``size`` is its length in bytes; the bytes after it are the client's.

    ``source`` is the client's address and port. It is None if the header has no address (LOCAL, UNKNOWN, UNSPEC, a Unix
    socket): then the client has the address of the connection (sections 2.1 and 2.2).
    """

    size: int
    source: tuple[str, int] | None


def parse(data: bytes) -> ProxyHeader | int:
    """Parse the header at the beginning of a connection.

    If the header is not complete, return the number of bytes that are needed to continue, at most MAX_V1 or MAX_V2.
    Raises ProxyHeaderError as soon as no further bytes could complete a header.
    """
    if V2_SIGNATURE.startswith(data[:12]) or data.startswith(V2_SIGNATURE):
        return _parse_v2(data)
    if V1_BEGINNING.startswith(data[:6]) or data.startswith(V1_BEGINNING):
        return _parse_v1(data)
    raise ProxyHeaderError("there is no PROXY header")


def looks_like_header(data: bytes) -> bool:
    """Return True if the first bytes of a connection, at least six, are those of a PROXY header."""
    return data.startswith((V1_BEGINNING, V2_SIGNATURE[:6]))


def _parse_v1(data: bytes) -> ProxyHeader | int:
    """Parse version 1 (section 2.1): a line in ASCII that ends with CRLF."""
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ProxyHeaderError(f"the header of version 1 does not end within {MAX_V1} bytes")
        return len(data) + 1
    line = data[: end + 2]
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(len(line), None)
    fields = _V1_LINE.fullmatch(line)
    if fields is None:
        raise ProxyHeaderError("the header of version 1 is malformed")
    family, source, destination, *ports = (field.decode("ascii") for field in fields.groups())
    address = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
    try:
        host = str(address(source))
        address(destination)
    except ValueError:
        raise ProxyHeaderError(f"the header of version 1 has an address that is not of its family {family}") from None
    if any(int(port) > 0xFFFF for port in ports):
        raise ProxyHeaderError("the header of version 1 has a port above 65535")
    return ProxyHeader(len(line), (host, int(ports[0])))


def _parse_v2(data: bytes) -> ProxyHeader | int:
    """Parse version 2 (section 2.2): 16 fixed bytes, then addresses, then TLVs, which are skipped (from 2.2.1 on)."""
    if len(data) < _V2_FIXED.size:
        return _V2_FIXED.size
    command: int
    family: int
    length: int
    _signature, command, family, length = _V2_FIXED.unpack_from(data)
    if command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError("the header of version 2 has another version or an unknown command")
    if family not in _ADDRESSES:
        raise ProxyHeaderError("the header of version 2 has a family or transport that is not TCP")
    size = _V2_FIXED.size + length
    if size > MAX_V2:
        raise ProxyHeaderError(f"the header of version 2 is longer than {MAX_V2} bytes")
    if command == _PROXY and length < _ADDRESSES[family]:
        raise ProxyHeaderError("the header of version 2 is shorter than its addresses")
    if len(data) < size:
        return size
    return ProxyHeader(size, _v2_source(data, family) if command == _PROXY else None)


def _v2_source(data: bytes, family: int) -> tuple[str, int] | None:
    """Return the source (section 2.2); the order is source and destination address, then their ports, big-endian."""
    if family == _TCP4:
        source, _destination, port = struct.unpack_from("!4s4sH", data, _V2_FIXED.size)
        return str(ipaddress.IPv4Address(source)), port
    if family == _TCP6:
        source, _destination, port = struct.unpack_from("!16s16sH", data, _V2_FIXED.size)
        return str(ipaddress.IPv6Address(source)), port
    return None
