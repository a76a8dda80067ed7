"""A name server in memory."""

import socket
from collections.abc import Sequence
from typing import Any

import trio


class Names(trio.abc.HostnameResolver):
    """A name server that answers ``hosts`` for every name; with ``hosts`` None it fails.

    ``delays`` are the seconds that a lookup takes, by name; ``asked`` lists the time and the name of each lookup.
    """

    def __init__(self, hosts: Sequence[str] | None = ()) -> None:
        self.hosts = hosts
        self.delays: dict[str, float] = {}
        self.asked: list[tuple[float, str]] = []

    async def getaddrinfo(self, *arguments: Any) -> Any:
        name, port = arguments[:2]
        name = name.decode() if isinstance(name, bytes) else name
        self.asked.append((trio.current_time(), name))
        await trio.sleep(self.delays.get(name, 0.0))
        if self.hosts is None:
            raise OSError("no answer from the name server")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 0, "", (host, port, 0, 0))
            if ":" in host
            else (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))
            for host in self.hosts
        ]

    async def getnameinfo(self, *_arguments: Any) -> Any:
        raise NotImplementedError
