"""Admission: limits for the gateway, each listener, each source address and each principal.

Limits of an address and of half-open connections are applied before the TLS handshake: a connection over them is only
closed. A client over any other limit gets a KMIP error. Every refusal is counted with its limit.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from enum import Enum
from functools import partial
from typing import Final

from gateway.budget import TokenBucket
from gateway.config import AllowanceConfig, LimitsConfig, PerAddressConfig
from gateway.front.half_open import HalfOpenConnections
from gateway.front.preface import hello_is_there
from gateway.front.sources import BEHIND_BALANCER, HalfOpen, Source, Sources
from gateway.front.turns import Share, Turns
from gateway.identity import Principal

_HELD_PER_FREE: Final = 4  # bytes that a principal may hold, for each byte that stays free
_ACCOUNTS: Final = 10_000  # accounts kept, so that a reconnect does not reset a rate; more if they are in use


class Limit(Enum):
    """The limits of clients and requests; the value is the label in metrics and errors."""

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


class Account:
    """The connections, requests and bytes of one principal, and its share of turns."""

    __slots__ = ("_admission", "_allowance", "_bucket", "buffered", "clients", "requests", "share", "take_turn")

    def __init__(self, admission: "Admission", allowance: AllowanceConfig) -> None:
        self._admission = admission
        self._allowance = allowance
        self._bucket = _bucket_of(allowance)
        self.clients = 0
        self.requests = 0
        self.buffered = 0  # bytes held for this principal
        self.share = Share()
        self.take_turn = partial(admission.turns.take, self.share)

    def __repr__(self) -> str:
        return f"<Account {self.clients} clients, {self.requests} requests>"

    @property
    def is_full(self) -> bool:
        """True if this principal may have no further connection."""
        return self.clients >= self._allowance.max_clients

    def allowance_changed(self) -> None:
        """Begin with a full bucket at the rate that the allowance has now."""
        self._bucket = _bucket_of(self._allowance)

    def take_over_bytes(self, other: "Account", size: int) -> None:
        """Count bytes that another account counted."""
        other.buffered -= size
        self.buffered += size

    def connect(self) -> Limit | None:
        """Count a connection; ``disconnect`` must follow. If that would exceed a limit, return it and count nothing."""
        if self.is_full:
            return Limit.PRINCIPAL_CLIENTS
        self.clients += 1
        return None

    def disconnect(self) -> None:
        """Count the end of a connection."""
        self.clients -= 1

    def begin(self, now: float) -> Limit | None:
        """Count a request; ``end`` must follow. If that would exceed a limit, return the limit and count nothing."""
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
        """Count the end of a request, whether it was answered or not."""
        self.requests -= 1
        self._admission.requests -= 1

    def hold(self, size: int) -> Limit | None:
        """Count ``size`` bytes as held (negative: as released). Return a limit, and count nothing, if that exceeds it.

        A principal may hold four times the bytes that stay free (dynamic thresholds: Choudhury and Hahne, 1998): alone,
        four fifths of all bytes; a second principal, four fifths of the rest. So there is always memory for a new
        principal, and none is reserved for principals that hold nothing.
        """
        admission = self._admission
        if size > 0:
            free = admission.max_buffered - admission.buffered - size
            if self.buffered + size > _HELD_PER_FREE * free:
                return Limit.PRINCIPAL_BUFFERED if self.buffered else Limit.BUFFERED
        self.buffered += size
        admission.buffered += size
        return None


def _bucket_of(allowance: AllowanceConfig) -> TokenBucket | None:
    rate = allowance.requests_per_second
    return TokenBucket(rate=rate, burst=max(1.0, allowance.request_burst or rate)) if rate else None


class Admission:
    """The gateway's limits. ``allowances`` holds the limits of each identity's principals, by the identity's name."""

    def __init__(
        self,
        *,
        limits: LimitsConfig,
        per_address: PerAddressConfig,
        allowances: Mapping[str, AllowanceConfig],
    ) -> None:
        self._limits = limits
        self._copy_limits()
        self.clients = 0
        self.requests = 0
        self.buffered = 0  # bytes of requests, until they are answered, and of answers, until clients have read them
        self.turns = Turns()
        self.unidentified = Account(self, AllowanceConfig())  # of all clients without an identity
        self.sources = Sources(per_address)
        self.half_open = HalfOpenConnections(limits.max_half_open, hello_is_there)
        self._allowances = allowances
        self._accounts: OrderedDict[tuple[str, str, str], Account] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Admission {self.clients} clients, {self.requests} requests, {self.buffered} bytes buffered>"

    def _copy_limits(self) -> None:
        """Copy the limits that every request compares: an attribute is faster than two."""
        self.max_clients = self._limits.max_clients
        self.max_requests = self._limits.max_requests
        self.max_buffered = self._limits.max_buffered

    def settings_changed(self, allowances: Mapping[str, AllowanceConfig], rates: Collection[str]) -> None:
        """Use the limits as they are now, and these allowances. ``rates`` names the identities whose rate has changed.

        Clients and requests beyond a lower limit are kept, and no further ones are accepted.
        """
        self._copy_limits()
        self.half_open.max_half_open = self._limits.max_half_open
        self.sources.settings_changed()
        # Allowances of removed identities stay: their clients may not have been identified again yet.
        self._allowances = {**self._allowances, **allowances}
        for (identity, _issuer, _subject), account in self._accounts.items():
            if identity in rates:
                account.allowance_changed()

    def account(self, principal: Principal) -> Account:
        """Return the account of a principal, the same for all its connections on all listeners."""
        return self._account(principal.identity.name, principal.issuer, principal.subject)

    def account_of(self, certificate: str) -> Account:
        """Return the account of all connections with one certificate, for a TLS worker, which knows no principals."""
        return self._account("", "", certificate)

    def _account(self, identity: str, issuer: str, subject: str) -> Account:
        key = (identity, issuer, subject)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _ACCOUNTS:
                self._forget_idle_account()
            allowance = self._allowances[identity] if identity else AllowanceConfig()
            account = self._accounts[key] = Account(self, allowance)
        else:
            self._accounts.move_to_end(key)
        return account

    def _forget_idle_account(self) -> None:
        idle = next((key for key, account in self._accounts.items() if not (account.clients or account.buffered)), None)
        if idle is not None:
            del self._accounts[idle]

    def begin_handshake(self, half_open: HalfOpen, now: float) -> Limit | None:
        """Count a connection for its address, and as half-open; ``end_handshake`` and ``disconnect`` must follow.

        If that would exceed a limit, return the limit and count nothing. At a limit of half-open connections, an older
        half-open connection is closed instead, if possible.
        """
        source = self.sources.connect(half_open.host)
        limit = self._limit_of(source, now) or self._evict_for(source, now)
        if limit is not None:
            self.sources.disconnect(source)
            half_open.source = BEHIND_BALANCER
            return limit
        half_open.source = source
        self.half_open.add(half_open)
        return None

    def end_handshake(self, half_open: HalfOpen) -> None:
        """Stop counting a connection as half-open. May be called again."""
        self.half_open.remove(half_open)

    def disconnect(self, half_open: HalfOpen) -> None:
        """Count the end of a connection, whether its handshake succeeded or not."""
        self.half_open.remove(half_open)
        if half_open.source is not BEHIND_BALANCER:
            self.sources.disconnect(half_open.source)

    def await_header(self, half_open: HalfOpen, now: float) -> Limit | None:
        """Count a connection whose address is unknown until its PROXY header arrives; see ``begin_handshake``."""
        if len(self.half_open) >= self.half_open.max_half_open and not self.half_open.evict_one(BEHIND_BALANCER, now):
            return Limit.HALF_OPEN
        half_open.source = BEHIND_BALANCER
        self.half_open.add(half_open)
        return None

    def _limit_of(self, source: Source, now: float) -> Limit | None:
        """Return the limit that the newest connection of an address exceeds; ``source`` counts it already."""
        if source.connections > self.sources.limits.max_clients:
            return Limit.ADDRESS_CLIENTS
        if source.bucket is not None and not source.bucket.take(now):
            return Limit.ADDRESS_RATE
        return None

    def _evict_for(self, source: Source, now: float) -> Limit | None:
        """Close older half-open connections at a limit. Return the limit if no connection may be closed."""
        if source.half_open >= self.sources.limits.max_half_open and not self.half_open.evict_one_of(source, now):
            return Limit.ADDRESS_HALF_OPEN
        if len(self.half_open) >= self.half_open.max_half_open and not self.half_open.evict_one(source, now):
            return Limit.HALF_OPEN
        return None
