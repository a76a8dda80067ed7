"""Fleet: all backends; backends are added and removed as the addresses of a configured name change.

A backend that is configured by a name may be several backends, one for each address of the name, called ``name/1``,
``name/2`` and so on; numbers are used again, so that labels of metrics stay few. A
single backend of a name has the name itself; but a backend that was one of several, and remains, keeps its number.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

import trio

from gateway.config import Address, Addresses, BalancingConfig
from gateway.log import Log
from gateway.upstream.backend import Backend
from gateway.upstream.connecting import look_up

Build = Callable[[str, Address], Backend]
Maintain = Callable[[Backend], Awaitable[None]]

_LOOKUP_PAUSE: Final = 1.0  # s between two lookups of a name, however often connections to it fail


class ConfiguredBackend:
    """One entry of ``[[backends]]``, and its backends at the moment, each by the first of its IP addresses.

    ``build`` makes a Backend from a name and an address. ``addresses`` tells how many key managers the addresses of the
    name stand for: "one", "each" (a key manager per address), or "auto" (as "each", but a single IPv4 and a single IPv6
    address are one key manager).
    """

    def __init__(self, name: str, address: Address, build: Build, *, addresses: Addresses) -> None:
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
        """True if the address is a name, which may have several IP addresses."""
        try:
            ipaddress.ip_address(self.address.host)
        except ValueError:
            return True
        return False

    @property
    def hosts(self) -> set[str]:
        """The known IP addresses of all its backends."""
        return {host for backend in self.backends.values() for host in backend.endpoint.hosts}

    def update(self, hosts: Sequence[str]) -> tuple[list[Backend], list[Backend]]:
        """Change the backends to those of these IP addresses. Return the added and the removed backends.

        A backend that keeps an address remains, with its sessions to that address and its health. So does a backend
        that was the only one before and is the only one now, whatever its address.
        """
        groups = self._grouped(hosts)
        left = list(self.backends.values())
        is_moved = len(groups) == len(left) == 1
        remaining: dict[str, Backend] = {}
        for first, group in groups.items():
            for backend in left:
                if is_moved or not set(group).isdisjoint(backend.endpoint.hosts):
                    left.remove(backend)
                    remaining[first] = backend
                    break
        added: dict[str, Backend] = {}
        for first in (first for first in groups if first not in remaining):
            taken = [*remaining.values(), *added.values()]
            added[first] = self._build_one(self.name if len(groups) == 1 else self._free_name(taken))
        self.backends = {first: remaining[first] if first in remaining else added[first] for first in groups}
        for first, backend in self.backends.items():
            if self._addresses != "one":
                backend.stable_id = f"{self.name}/{first}"  # also if it is the only one
            backend.set_hosts(groups[first])
        return list(added.values()), left

    def _grouped(self, hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the IP addresses of each backend, in the resolver's order, by its lowest address, IPv4 before IPv6."""
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
    """All backends. ``maintain`` runs for each until it is removed; ``changed`` gets the new list when it changes.

    ``count_lookup`` gets the name of the entry and the result, "success" or "failure", of each lookup of an address.
    """

    def __init__(
        self,
        configured: Sequence[ConfiguredBackend],
        maintain: Maintain,
        changed: Callable[[list[Backend]], None],
        log: Log,
        count_lookup: Callable[[str, str], None] = lambda _backend, _result: None,
    ) -> None:
        self._configured = configured
        self._maintain = maintain
        self._changed = changed
        self._log = log
        self._count_lookup = count_lookup
        self._scopes: dict[Backend, trio.CancelScope] = {}
        self._lookups: dict[ConfiguredBackend, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None  # while ``run`` runs
        self.resolve_interval = BalancingConfig().resolve_interval

    def __repr__(self) -> str:
        return f"<Fleet of {len(self.backends)} backends>"

    @property
    def backends(self) -> list[Backend]:
        """All backends at the moment, in the order of the configuration."""
        return [backend for configured in self._configured for backend in configured.backends.values()]

    async def run(self, resolve_interval: float) -> None:
        """Maintain all backends, and look up names every ``resolve_interval`` seconds, for ever."""
        self.resolve_interval = resolve_interval
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for configured in self._configured:
                self._begin(configured, nursery)
            await trio.sleep_forever()

    def replace(self, configured: Sequence[ConfiguredBackend]) -> None:
        """Change the entries of ``[[backends]]``, in this order. Backends of entries that are left out are removed.

        Requests in flight at a removed backend finish; then its sessions are closed. While ``run`` does not run, the
        entries are only noted.
        """
        before, self._configured = self._configured, list(configured)
        self._changed(self.backends)
        if self._nursery is not None:
            for each in configured:
                if each not in before:
                    self._begin(each, self._nursery)
        for each in before:
            if each not in configured:
                if each in self._lookups:
                    self._lookups[each].cancel()
                for backend in each.backends.values():
                    self._remove(backend)

    @property
    def configured(self) -> Sequence[ConfiguredBackend]:
        """The entries of ``[[backends]]``."""
        return self._configured

    def _begin(self, configured: ConfiguredBackend, nursery: trio.Nursery) -> None:
        for backend in configured.backends.values():
            nursery.start_soon(self._maintain_one, backend)
        if configured.is_by_name:  # in a separate task: a resolver may take long to fail
            nursery.start_soon(self._keep_resolving, configured, nursery)

    def _remove(self, backend: Backend) -> None:
        backend.close("removed")
        if backend in self._scopes:
            self._scopes[backend].cancel()

    async def _keep_resolving(self, configured: ConfiguredBackend, nursery: trio.Nursery) -> None:
        """Look up a name every ``resolve_interval`` seconds, and soon after a connection to its addresses failed."""
        with trio.CancelScope() as self._lookups[configured]:
            while configured in self._configured:
                configured.lookup_wanted = trio.Event()
                await self._resolve(configured, nursery)
                interval = self.resolve_interval
                pause = min(_LOOKUP_PAUSE, interval)
                await trio.sleep(pause)
                with trio.move_on_after(interval - pause):
                    await configured.lookup_wanted.wait()
        del self._lookups[configured]

    async def _resolve(self, configured: ConfiguredBackend, nursery: trio.Nursery) -> None:
        """Look up a name once. If that fails, sessions are opened to the known addresses."""
        before = configured.hosts
        try:
            hosts = await look_up(configured.address)
        except OSError as error:
            self._count_lookup(configured.name, "failure")
            self._not_found(configured, error.strerror or str(error))
            return
        self._count_lookup(configured.name, "success")
        if configured.lookup_error:
            configured.lookup_error = ""
            self._log.info("name resolved again", backend=configured.name, addresses=hosts)
        added, removed = configured.update(hosts)
        if added or removed:
            self._changed(self.backends)
        for backend in added:
            nursery.start_soon(self._maintain_one, backend)
        for backend in removed:
            self._remove(backend)
        if added or removed or (before and configured.hosts != before):
            self._log.info(
                "addresses changed",
                backend=configured.name,
                addresses=hosts,
                added=_names(added),
                removed=_names(removed),
            )

    def _not_found(self, configured: ConfiguredBackend, detail: str) -> None:
        if detail != configured.lookup_error:
            configured.lookup_error = detail
            known = sorted(configured.hosts)
            self._log.warning("can't resolve a name", backend=configured.name, detail=detail, known_addresses=known)

    async def _maintain_one(self, backend: Backend) -> None:
        with trio.CancelScope() as self._scopes[backend]:
            if backend in self.backends:  # not removed before this task began
                await self._maintain(backend)
        del self._scopes[backend]


def _names(backends: Sequence[Backend]) -> list[str]:
    return [backend.name for backend in backends]
