"""Admission: limits for the gateway, each listener, each source address and each principal.

Limits of an address and of half-open connections are applied before the TLS handshake: a connection over them is only
closed. A client over another limit is told so with a KMIP error. A count says which limit it was.
"""

from collections import OrderedDict
from enum import Enum
from typing import Final, NamedTuple

from gateway.budget import TokenBucket
from gateway.front.half_open import HalfOpenConnections
from gateway.front.preface import hello_is_there
from gateway.front.sources import BEHIND_BALANCER, AddressLimits, HalfOpen, Source, Sources
from gateway.front.turns import Share, Turns
from gateway.identity import Principal

_LEFT: Final = 4  # a principal may hold so many times the bytes that are left free
_ACCOUNTS: Final = 10_000  # of principals without a connection, kept so that a fresh session does not reset a rate


class Limit(Enum):
    """Which limit was reached; the value is its label."""

    CLIENTS = "max_clients"
    LISTENER_CLIENTS = "listener_max_clients"
    PRINCIPAL_CLIENTS = "principal_max_clients"
    REQUESTS = "max_requests"
    PRINCIPAL_REQUESTS = "principal_max_requests"
    RATE = "requests_per_second"
    BUFFERED = "max_buffered"
    PRINCIPAL_BUFFERED = "principal_max_buffered"
    HALF_OPEN = "max_half_open"
    ADDRESS_CLIENTS = "address_max_clients"
    ADDRESS_HALF_OPEN = "address_max_half_open"
    ADDRESS_RATE = "address_handshakes_per_second"


#: The setting of each limit that a connection can exceed, for the log.
SETTINGS: Final = {
    Limit.CLIENTS: "limits.max_clients",
    Limit.LISTENER_CLIENTS: "listeners.max_clients",
    Limit.PRINCIPAL_CLIENTS: "identities.max_clients",
    Limit.HALF_OPEN: "limits.max_half_open",
    Limit.ADDRESS_CLIENTS: "per_address.max_clients",
    Limit.ADDRESS_HALF_OPEN: "per_address.max_half_open",
    Limit.ADDRESS_RATE: "per_address.handshakes_per_second",
}


class Allowance(NamedTuple):
    """What one principal may have: connections, requests in flight, and requests a second (0: any number)."""

    max_clients: int = 5000
    max_requests: int = 1000
    requests_per_second: float = 0.0
    request_burst: float = 0.0


class Account:
    """What one principal has just now."""

    __slots__ = ("_admission", "_allowance", "_bucket", "buffered", "clients", "requests", "share")

    def __init__(self, admission: "Admission", allowance: Allowance) -> None:
        rate = allowance.requests_per_second
        self._admission = admission
        self._allowance = allowance
        self._bucket = TokenBucket(rate=rate, burst=max(1.0, allowance.request_burst or rate)) if rate else None
        self.clients = 0
        self.requests = 0
        self.buffered = 0  # bytes held for this principal
        self.share = Share()

    def __repr__(self) -> str:
        return f"<Account {self.clients} clients, {self.requests} requests>"

    @property
    def is_full(self) -> bool:
        """True if this principal may have no further connection."""
        return self.clients >= self._allowance.max_clients

    def connect(self) -> Limit | None:
        """A connection of this principal begins, if no limit is named; then ``disconnect`` must follow."""
        if self.is_full:
            return Limit.PRINCIPAL_CLIENTS
        self.clients += 1
        return None

    def disconnect(self) -> None:
        """A connection of this principal has ended."""
        self.clients -= 1

    def begin(self, now: float) -> Limit | None:
        """A request of this principal begins, if no limit is named; then ``end`` must follow."""
        if self._admission.requests >= self._admission.max_requests:
            return Limit.REQUESTS
        if self.requests >= self._allowance.max_requests:
            return Limit.PRINCIPAL_REQUESTS
        if self._bucket is not None and not self._bucket.take(now):
            return Limit.RATE
        self.requests += 1
        self._admission.requests += 1
        return None

    def end(self) -> None:
        """A request of this principal has been answered, or given up."""
        self.requests -= 1
        self._admission.requests -= 1

    def hold(self, size: int) -> Limit | None:
        """Hold so many bytes more (or, negative, fewer), if no limit is named; otherwise hold nothing more.

        A principal may hold four times the bytes that are left free (dynamic thresholds: Choudhury and Hahne, 1998):
        alone, four fifths of all; the next one, four fifths of what is left. So there is room for a newcomer at any
        time, and no share lies idle for principals that hold nothing.
        """
        admission = self._admission
        if size > 0:
            left = admission.max_buffered - admission.buffered - size
            if self.buffered + size > _LEFT * left:
                return Limit.PRINCIPAL_BUFFERED if self.buffered else Limit.BUFFERED
        self.buffered += size
        admission.buffered += size
        return None


class Admission:
    """The gateway's limits. ``allowances`` holds what each identity's principals may have, by the identity's name."""

    def __init__(
        self,
        *,
        max_clients: int = 20_000,
        max_requests: int = 10_000,
        max_buffered: int = 256 << 20,
        max_half_open: int = 1000,
        per_address: AddressLimits | None = None,
        allowances: dict[str, Allowance] | None = None,
    ) -> None:
        self.max_clients = max_clients
        self.max_requests = max_requests
        self.max_buffered = max_buffered
        self.clients = 0
        self.requests = 0
        self.buffered = 0  # bytes of requests and answers held: received in part, not yet answered, not yet taken
        self.turns = Turns()
        self.strangers = Account(self, Allowance())  # of all clients without an identity
        self.sources = Sources(per_address or AddressLimits())
        self.half_open = HalfOpenConnections(max_half_open, hello_is_there)
        self._allowances = allowances or {}
        self._accounts: OrderedDict[tuple[str, str, str], Account] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Admission {self.clients} clients, {self.requests} requests, {self.buffered} bytes buffered>"

    def account(self, principal: Principal) -> Account:
        """The account of a principal: one for all its connections, on every listener."""
        key = (principal.identity.name, principal.issuer, principal.subject)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _ACCOUNTS:
                self._forget_one()
            account = self._accounts[key] = Account(self, self._allowances.get(principal.identity.name, Allowance()))
        else:
            self._accounts.move_to_end(key)
        return account

    def _forget_one(self) -> None:
        idle = next((key for key, account in self._accounts.items() if not (account.clients or account.buffered)), None)
        if idle is not None:
            del self._accounts[idle]

    def begin_handshake(self, half_open: HalfOpen, now: float) -> Limit | None:
        """Count a connection for its address, and its handshake, which begins if no limit is returned.

        Then ``end_handshake`` and ``disconnect`` must follow. Older half-open connections are closed to make room.
        """
        source = self.sources.connect(half_open.host)
        limit = self._limit_of(source, now) or self._make_room(source, now)
        if limit is not None:
            self.sources.disconnect(source)
            half_open.source = BEHIND_BALANCER
            return limit
        half_open.source = source
        self.half_open.add(half_open)
        return None

    def end_handshake(self, half_open: HalfOpen) -> None:
        """Count a connection as half-open no longer. May be called again."""
        self.half_open.remove(half_open)

    def disconnect(self, half_open: HalfOpen) -> None:
        """Count the end of a connection, whether its handshake succeeded or not."""
        self.half_open.remove(half_open)
        if half_open.source is not BEHIND_BALANCER:
            self.sources.disconnect(half_open.source)

    def await_header(self, half_open: HalfOpen, now: float) -> Limit | None:
        """Count a connection whose PROXY header is awaited, as ``begin_handshake``; its address is not known yet."""
        if len(self.half_open) >= self.half_open.most and not self.half_open.evict_one(BEHIND_BALANCER, now):
            return Limit.HALF_OPEN
        half_open.source = BEHIND_BALANCER
        self.half_open.add(half_open)
        return None

    def _limit_of(self, source: Source, now: float) -> Limit | None:
        """Return the limit that the newest connection of an address exceeds; it is counted already."""
        if source.connections > self.sources.limits.max_clients:
            return Limit.ADDRESS_CLIENTS
        if source.bucket is not None and not source.bucket.take(now):
            return Limit.ADDRESS_RATE
        return None

    def _make_room(self, source: Source, now: float) -> Limit | None:
        if source.half_open >= self.sources.limits.max_half_open and not self.half_open.evict_one_of(source, now):
            return Limit.ADDRESS_HALF_OPEN
        if len(self.half_open) >= self.half_open.most and not self.half_open.evict_one(source, now):
            return Limit.HALF_OPEN
        return None
