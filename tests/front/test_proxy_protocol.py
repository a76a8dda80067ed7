"""The PROXY header: both versions, whole and in pieces, and malformed headers."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.front.proxy_protocol import (
    MAX_V1,
    MAX_V2,
    V2_SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    looks_like_header,
    parse,
)
from tests.kit.proxy_headers import HEADERS, MALFORMED, v2


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01", b"\r\n", V2_SIGNATURE])
def test_header_is_read_whole_and_what_follows_is_left(what: str, behind: bytes) -> None:
    header, source = HEADERS[what]
    assert parse(header + behind) == ProxyHeader(len(header), source)


@pytest.mark.parametrize("what", HEADERS)
def test_header_is_read_byte_by_byte(what: str) -> None:
    header, source = HEADERS[what]
    for size in range(len(header)):
        needed = parse(header[:size])
        assert isinstance(needed, int)
        assert size < needed <= len(header) or what.startswith("1")
    assert parse(header) == ProxyHeader(len(header), source)


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_header_is_refused(what: str) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(MALFORMED[what])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error_or_need_more_bytes(data: bytes) -> None:
    for beginning in (b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21\x11\x00"):
        try:
            parsed = parse(beginning + data)
        except ProxyHeaderError:
            continue
        if isinstance(parsed, int):
            assert len(beginning + data) < parsed <= MAX_V2
        else:
            assert 0 < parsed.size <= len(beginning + data)


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.binary(max_size=300), st.binary(max_size=30))
def test_ipv4_client_is_found_in_both_versions(
    client: ipaddress.IPv4Address, port: int, tlvs: bytes, behind: bytes
) -> None:
    line = f"PROXY TCP4 {client} 198.51.100.7 {port} 5696\r\n".encode()
    binary = v2(0x21, 0x11, client.packed + bytes(4) + struct.pack("!HH", port, 5696) + tlvs)
    for header in (line, binary):
        assert parse(header + behind) == ProxyHeader(len(header), (str(client), port))


@given(st.ip_addresses(v=6), st.integers(0, 65535), st.integers(0, 200))
def test_ipv6_client_is_found_in_both_versions(client: ipaddress.IPv6Address, port: int, cut: int) -> None:
    line = f"PROXY TCP6 {client} 2001:db8::2 {port} 5696\r\n".encode()
    binary = v2(0x21, 0x21, client.packed + bytes(16) + struct.pack("!HH", port, 5696))
    for header in (line, binary):
        assert len(line) <= MAX_V1
        assert isinstance(parse(header[: min(cut, len(header) - 1)]), int)
        assert parse(header) == ProxyHeader(len(header), (str(client), port))


def test_header_is_recognised_by_its_first_bytes() -> None:
    assert looks_like_header(b"PROXY TCP4 192")
    assert looks_like_header(V2_SIGNATURE + b"!")
    assert not looks_like_header(b"PROXY")
    assert not looks_like_header(b"\x16\x03\x01\x02\x00\x01")
