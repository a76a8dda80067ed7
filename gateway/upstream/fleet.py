"""The fleet: all backends, and those that come and go with the addresses of a name.

A backend that is configured by a name may become several backends, one for each address of the name, called ``name/1``,
``name/2`` and so on; numbers are used again, so that labels of metrics stay few. While the addresses of a name are one
backend, it is called as the name, unless it was one of several before: a backend that stays keeps its name.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

import trio

from gateway.config import Address, Addresses
from gateway.log import Log
from gateway.upstream.backend import Backend
from gateway.upstream.connecting import look_up

Build = Callable[[str, Address], Backend]
Tend = Callable[[Backend], Awaitable[None]]

_LOOKUP_PAUSE: Final = 1.0  # s between two lookups of a name, however often connections to it fail


class ConfiguredBackend:
    """One configured backend, and the backends that it is just now, each by the first of its IP addresses.

    ``build`` makes a Backend of a name and an address. ``addresses`` says how many key managers the addresses of the
    name are: "one", "each" (of them is one), or "auto" ("each", but one IPv4 and one IPv6 address are one).
    """

    def __init__(self, name: str, address: Address, build: Build, addresses: Addresses = "auto") -> None:
        self.name = name
        self.address = address
        self.lookup_wanted = trio.Event()
        self.lookup_error = ""
        self._build = build
        self._addresses = addresses
        self.backends: dict[str, Backend] = {address.host: self._build_one(name)}

    def __repr__(self) -> str:
        return f"<ConfiguredBackend {self.name}: {len(self.backends)} backends>"

    @property
    def is_by_name(self) -> bool:
        """Whether its address is a name, which may mean several."""
        try:
            ipaddress.ip_address(self.address.host)
        except ValueError:
            return True
        return False

    @property
    def hosts(self) -> set[str]:
        """The IP addresses that are known, of all its backends."""
        return {host for backend in self.backends.values() for host in backend.endpoint.hosts}

    def update(self, hosts: Sequence[str]) -> tuple[list[Backend], list[Backend]]:
        """Become the backends of these IP addresses. Returns the backends that have come, and those that have gone.

        A backend of which an address is still there stays, with its sessions to that address and its health; so does
        one that was alone before and is alone now, wherever it has moved.
        """
        groups = self._grouped(hosts)
        left = list(self.backends.values())
        is_moved = len(groups) == len(left) == 1
        stay: dict[str, Backend] = {}
        for first, group in groups.items():
            same = next((one for one in left if is_moved or not set(group).isdisjoint(one.endpoint.hosts)), None)
            if same is not None:
                left.remove(same)
                stay[first] = same
        come: dict[str, Backend] = {}
        for first in (first for first in groups if first not in stay):
            taken = [*stay.values(), *come.values()]
            come[first] = self._build_one(self.name if len(groups) == 1 else self._free_name(taken))
        self.backends = {first: stay[first] if first in stay else come[first] for first in groups}
        for first, backend in self.backends.items():
            if self._addresses != "one":
                backend.stable_id = f"{self.name}/{first}"  # whether there are others or not
            backend.move(groups[first])
        return list(come.values()), left

    def _grouped(self, hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The IP addresses of each backend, in the resolver's order, by the first: the lowest, IPv4 before IPv6."""
        ordered = sorted(set(hosts), key=lambda host: (":" in host, host))
        is_dual_stack = [":" in host for host in ordered] == [False, True]
        if ordered and (self._addresses == "one" or (self._addresses == "auto" and is_dual_stack)):
            return {ordered[0]: tuple(dict.fromkeys(hosts))}
        return {host: (host,) for host in ordered}

    def _build_one(self, name: str) -> Backend:
        backend = self._build(name, self.address)
        backend.endpoint.connect_failed = self._want_lookup
        return backend

    def _free_name(self, backends: Sequence[Backend]) -> str:
        taken = {backend.name for backend in backends}
        return next(name for number in count(1) if (name := f"{self.name}/{number}") not in taken)

    def _want_lookup(self) -> None:
        self.lookup_wanted.set()


class Fleet:
    """All backends. ``tend`` runs for each as long as it is there; ``changed`` is told all when they change."""

    def __init__(
        self, members: Sequence[ConfiguredBackend], tend: Tend, changed: Callable[[list[Backend]], None], log: Log
    ) -> None:
        self._members = members
        self._tend = tend
        self._changed = changed
        self._log = log
        self._scopes: dict[Backend, trio.CancelScope] = {}

    def __repr__(self) -> str:
        return f"<Fleet of {len(self.backends)} backends>"

    @property
    def backends(self) -> list[Backend]:
        """All backends there are just now, in the order of the configuration."""
        return [backend for member in self._members for backend in member.backends.values()]

    async def run(self, resolve_interval: float) -> None:
        """Tend all backends, and look names up every so many seconds, for ever."""
        async with trio.open_nursery() as nursery:
            for backend in self.backends:
                nursery.start_soon(self._tend_one, backend)
            for member in self._members:
                if member.is_by_name:  # each by itself: a resolver may take long to fail
                    nursery.start_soon(self._keep_resolving, member, resolve_interval, nursery)
            await trio.sleep_forever()

    async def _keep_resolving(self, member: ConfiguredBackend, interval: float, nursery: trio.Nursery) -> None:
        """Look a name up every so many seconds, and soon after a connection to its addresses has failed."""
        while True:
            member.lookup_wanted = trio.Event()
            await self._resolve(member, nursery)
            pause = min(_LOOKUP_PAUSE, interval)
            await trio.sleep(pause)
            with trio.move_on_after(interval - pause):
                await member.lookup_wanted.wait()

    async def _resolve(self, member: ConfiguredBackend, nursery: trio.Nursery) -> None:
        """Look a member's name up. While that fails, sessions are opened to the addresses that are known."""
        before = member.hosts
        try:
            hosts = await look_up(member.address)
        except OSError as error:
            self._not_found(member, error.strerror or str(error))
            return
        if member.lookup_error:
            member.lookup_error = ""
            self._log.info("name looked up again", backend=member.name, addresses=hosts)
        come, gone = member.update(hosts)
        if come or gone:
            self._changed(self.backends)
        for backend in come:
            nursery.start_soon(self._tend_one, backend)
        for backend in gone:
            backend.close("removed")
            if backend in self._scopes:
                self._scopes[backend].cancel()
        if come or gone or (before and member.hosts != before):
            self._log.info(
                "addresses changed", backend=member.name, addresses=hosts, come=_names(come), gone=_names(gone)
            )

    def _not_found(self, member: ConfiguredBackend, detail: str) -> None:
        if detail != member.lookup_error:
            member.lookup_error = detail
            known = sorted(member.hosts)
            self._log.warning("can't look a name up", backend=member.name, detail=detail, known_addresses=known)

    async def _tend_one(self, backend: Backend) -> None:
        with trio.CancelScope() as self._scopes[backend]:
            await self._tend(backend)
        del self._scopes[backend]


def _names(backends: Sequence[Backend]) -> list[str]:
    return [backend.name for backend in backends]
