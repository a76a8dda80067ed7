"""The fleet: all backends, and those that come and go with the addresses of a name.

A backend that is configured by a name with several addresses becomes one for each, called ``name/1``, ``name/2`` and so
on; places are used again, so that labels of metrics stay few. While a name has one address it is one backend, and every
session looks the name up; it is called as the name, unless it was one of several before: whoever stays keeps its name.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import count

import trio

from gateway.config import Address
from gateway.log import Log
from gateway.upstream.backend import Backend

Build = Callable[[str, Address], Backend]
Tend = Callable[[Backend], Awaitable[None]]


class Member:
    """One configured backend, and the backends that it is just now, by their hosts: IP addresses, once these are known.

    ``build`` makes a Backend of a name and an address.
    """

    def __init__(self, name: str, address: Address, build: Build) -> None:
        self.name = name
        self.address = address
        self._build = build
        self.backends: dict[str, Backend] = {address.host: build(name, address)}

    def __repr__(self) -> str:
        return f"<Member {self.name}: {len(self.backends)} backends>"

    @property
    def is_by_name(self) -> bool:
        """Whether its address is a name, which may mean several."""
        try:
            ipaddress.ip_address(self.address.host)
        except ValueError:
            return True
        return False

    def update(self, hosts: Sequence[str]) -> tuple[list[Backend], list[Backend]]:
        """Become the backends of these hosts. Returns those that have come, and those that have gone.

        A host that was there keeps its backend, with its sessions and its health.
        """
        is_one = len(hosts) == 1
        if is_one and len(self.backends) == 1:  # its next session finds where that is by itself
            _host, backend = self.backends.popitem()
            self.backends[hosts[0]] = backend
        gone = [self.backends.pop(host) for host in list(self.backends) if host not in hosts]
        come = [self._add(host, is_one=is_one) for host in hosts if host not in self.backends]
        for host, backend in self.backends.items():
            backend.known_as = f"{self.name}/{host}"  # whether there are others or not
            backend.move(self.address if is_one else Address(host, self.address.port), "" if is_one else host)
        return come, gone

    def _add(self, host: str, *, is_one: bool) -> Backend:
        taken = {backend.name for backend in self.backends.values()}
        numbered = (name for number in count(1) if (name := f"{self.name}/{number}") not in taken)
        backend = self.backends[host] = self._build(self.name if is_one else next(numbered), self.address)
        return backend


class Fleet:
    """All backends. ``tend`` runs for each as long as it is there; ``changed`` is told all when they change."""

    def __init__(
        self, members: Sequence[Member], tend: Tend, changed: Callable[[list[Backend]], None], log: Log
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
            while True:
                for member in self._members:
                    if member.is_by_name:
                        await self._resolve(member, nursery)
                await trio.sleep(resolve_interval)

    async def _resolve(self, member: Member, nursery: trio.Nursery) -> None:
        """Look a member's name up. While that fails, things stay as they are."""
        address = member.address
        try:
            found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            self._log.warning("can't look a name up", backend=member.name, detail=error.strerror or str(error))
            return
        come, gone = member.update(sorted({str(sockaddr[0]) for *_, sockaddr in found}))
        if not come and not gone:
            return
        self._changed(self.backends)
        for backend in come:
            nursery.start_soon(self._tend_one, backend)
        for backend in gone:
            backend.close("gone")
            if backend in self._scopes:
                self._scopes[backend].cancel()
        self._log.info("addresses changed", backend=member.name, come=_names(come), gone=_names(gone))

    async def _tend_one(self, backend: Backend) -> None:
        with trio.CancelScope() as self._scopes[backend]:
            await self._tend(backend)
        del self._scopes[backend]


def _names(backends: Sequence[Backend]) -> list[str]:
    return [backend.name for backend in backends]
