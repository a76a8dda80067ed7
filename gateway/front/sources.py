"""Source addresses: the connections of each address, and their limits.

All addresses with the same prefix count as one address, because a client with an address of an IPv6 network usually has
the whole network.
"""

import ipaddress
import socket
from collections import OrderedDict
from typing import Final

import trio

from gateway.budget import TokenBucket
from gateway.config import PerAddressConfig

_REMEMBERED: Final = 10_000  # addresses without a connection, kept so that a reconnect does not reset a rate
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2: an IPv4 address in an IPv6 socket


class HalfOpen:
    """A connection whose TLS handshake is not finished, from ``host`` and ``port``.

    ``scope`` ends the handshake, and is None before and after it; ``evicted`` is True if the connection was ended, or
    must be, for a newer connection.
    """

    __slots__ = ("answered_at", "evicted", "handshake_seconds", "host", "port", "scope", "sock", "source")

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self.sock = sock
        self.host = host
        self.port = port
        self.source = BEHIND_BALANCER
        self.scope: trio.CancelScope | None = None
        self.answered_at = float("inf")  # trio's time; infinity while the first TLS record is awaited
        self.evicted = False
        self.handshake_seconds = 0.0  # once the handshake has succeeded

    def __repr__(self) -> str:
        return f"<HalfOpen of {self.source.prefix.hex()}>"

    @property
    def peer(self) -> str:
        """The client's address and port as one text, for the log."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def evict(self) -> None:
        """End this connection in favour of a newer connection."""
        self.evicted = True
        if self.scope is not None:
            self.scope.cancel()


class Source:
    """The connections of one address. Two dictionaries hold the half-open connections, the oldest first."""

    __slots__ = ("answered", "bucket", "connections", "prefix", "silent")

    def __init__(self, prefix: bytes, bucket: TokenBucket | None = None) -> None:
        self.prefix = prefix
        self.bucket = bucket
        self.connections = 0
        self.silent: dict[HalfOpen, None] = {}  # waiting for their first TLS record
        self.answered: dict[HalfOpen, None] = {}  # the record has arrived, and the gateway has begun to answer

    def __repr__(self) -> str:
        return f"<Source {self.prefix.hex()}: {self.connections} connections, {self.half_open} half-open>"

    @property
    def half_open(self) -> int:
        """The number of half-open connections."""
        return len(self.silent) + len(self.answered)


#: The address of connections whose PROXY header has not arrived. It has no limits.
BEHIND_BALANCER: Final = Source(b"")


class Sources:
    """All addresses with a connection; and, if rates are limited, the last 10,000 addresses without a connection."""

    def __init__(self, limits: PerAddressConfig) -> None:
        self.limits = limits
        self._masks = self._masks_now()
        self._rates = self._rates_now()
        self._sources: dict[bytes, Source] = {}
        self._idle: OrderedDict[bytes, Source] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources) + len(self._idle)

    def settings_changed(self) -> None:
        """Use the limits as they are now. Addresses begin with a full bucket at a changed rate."""
        self._masks = self._masks_now()
        if self._rates != self._rates_now():
            self._rates = self._rates_now()
            self._idle.clear()
            for source in self._sources.values():
                source.bucket = self._bucket()

    def _masks_now(self) -> dict[int, int]:
        return {4: _mask(self.limits.ipv4_prefix, 32), 16: _mask(self.limits.ipv6_prefix, 128)}

    def _rates_now(self) -> tuple[float, float]:
        return self.limits.handshakes_per_second, self.limits.handshake_burst

    def connect(self, host: str) -> Source:
        """Count a new connection of an address; ``disconnect`` must follow."""
        prefix = self._prefix(host)
        source = self._sources.get(prefix)
        if source is None:
            source = self._idle.pop(prefix, None) or Source(prefix, self._bucket())
            self._sources[prefix] = source
        source.connections += 1
        return source

    def disconnect(self, source: Source) -> None:
        """Count the end of a connection. Forget the address after its last connection, unless its rate is limited."""
        source.connections -= 1
        if source.connections:
            return
        del self._sources[source.prefix]
        if source.bucket is not None:
            self._idle[source.prefix] = source
            if len(self._idle) > _REMEMBERED:
                self._idle.popitem(last=False)

    def _bucket(self) -> TokenBucket | None:
        rate = self.limits.handshakes_per_second
        return TokenBucket(rate=rate, burst=max(1.0, self.limits.handshake_burst or rate)) if rate else None

    def _prefix(self, host: str) -> bytes:
        packed = packed_address(host)
        mask = self._masks[len(packed)]
        return (int.from_bytes(packed, "big") & mask).to_bytes(len(packed), "big")


def packed_address(host: str) -> bytes:
    """Return an IP address in network byte order: 4 bytes for IPv4, also if it is mapped into IPv6; otherwise 16."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed


def plain_address(host: str) -> str:
    """Return an IP address as it is usually written: an IPv4 address that is mapped into IPv6 as IPv4."""
    return str(ipaddress.ip_address(packed_address(host))) if host.startswith("::ffff:") else host


def _mask(prefix: int, bits: int) -> int:
    return ((1 << prefix) - 1) << (bits - prefix)
