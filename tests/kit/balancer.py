"""A TCP balancer before several gateways, on loopback."""

import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import trio

from gateway.config import Address

_CHUNK: Final = 65536  # bytes
_ENDED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Balancer:
    """Forwards each connection to a gateway: to the next in turn, or ``by_source`` to that of the client's address.

    A gateway that refuses a connection is passed over. ``forwarded`` counts the connections of each gateway, and
    ``refused`` those that no gateway accepted.
    """

    def __init__(self, gateways: Sequence[Address], *, by_source: bool = False) -> None:
        self.forwarded = dict.fromkeys(gateways, 0)
        self.refused = 0
        self._gateways = list(gateways)
        self._by_source = by_source
        self._turns = itertools.count()
        self.address = Address("127.0.0.1", 0)  # known when it runs

    def __repr__(self) -> str:
        return f"<Balancer on {self.address}: {self.forwarded}, {self.refused} refused>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward connections until cancelled; started when it listens."""
        listeners = await trio.open_tcp_listeners(0, host=self.address.host)
        self.address = Address(*listeners[0].socket.getsockname())
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    def _order(self, near: trio.SocketStream) -> Iterator[Address]:
        first = next(self._turns)
        if self._by_source:
            first = int(ipaddress.ip_address(near.socket.getpeername()[0]))
        for index in range(len(self._gateways)):
            yield self._gateways[(first + index) % len(self._gateways)]

    async def _forward(self, near: trio.SocketStream) -> None:
        for gateway in self._order(near):
            with suppress(OSError):
                far = await trio.open_tcp_stream(gateway.host, gateway.port)
                self.forwarded[gateway] += 1
                break
        else:
            self.refused += 1
            await near.aclose()
            return
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, near, far)
            nursery.start_soon(_pump, far, near)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Forward bytes and the end of the stream; an error closes both sides."""
    try:
        while data := await source.receive_some(_CHUNK):
            await sink.send_all(data)
        await sink.send_eof()
    except _ENDED:
        for stream in (source, sink):
            await trio.aclose_forcefully(stream)
