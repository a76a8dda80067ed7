"""A relay between the gateway and a key manager that can swallow flows, and move to a new address.

A stateful firewall that forgets a flow, and a key manager whose name gets another address, look like this to the
gateway. The key manager itself notices nothing.
"""

import itertools
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from tests.kit.processes import free_port

_CHUNK: Final = 65536  # bytes
_BACKLOG: Final = 512
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: a close resets the connection
_ENDED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Flow:
    """A forwarded connection. ``near`` is the gateway's side, ``far`` the key manager's."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream, host: str) -> None:
        self.near = near
        self.far = far
        self.host = host
        self.is_swallowed = False

    def reset(self) -> None:
        """Reset both sides."""
        _reset(self.near)
        _reset(self.far)


class Relay:
    """Forwards connections from its present address to a port of 127.0.0.1.

    It listens from the beginning; connections are forwarded while ``run`` runs.
    """

    def __init__(self, target: int, hosts: Sequence[str]) -> None:
        self.port = free_port()
        self._target = target
        self._hosts = itertools.cycle(hosts)
        self.host = next(self._hosts)
        self._listener = self._listen()
        self._old: trio.SocketListener | None = None
        self._flows: set[_Flow] = set()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Relay {self.host}:{self.port}: {len(self._flows)} flows, {self.swallowed} swallowed>"

    @property
    def swallowed(self) -> int:
        """Number of swallowed flows that the gateway has not closed yet."""
        return sum(flow.is_swallowed for flow in self._flows)

    async def run(self) -> None:
        """Forward connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._accept, self._listener, self.host)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self.close()

    def close(self) -> None:
        """Stop listening."""
        for listener in (self._listener, self._old):
            if listener is not None:
                listener.socket.close()

    def swallow(self) -> None:
        """Forward nothing more on the present flows, and keep them open; new flows are forwarded."""
        for flow in self._flows:
            flow.is_swallowed = True

    def open_elsewhere(self) -> None:
        """Listen on the next address, too, which becomes ``host``. Close the old address before the next move."""
        assert self._old is None
        assert self._nursery is not None
        self._old = self._listener
        self.host = next(self._hosts)
        self._listener = self._listen()
        self._nursery.start_soon(self._accept, self._listener, self.host)

    def close_old_address(self, *, swallow: bool) -> None:
        """Listen on the present address only. Flows to the old address are swallowed, or reset."""
        assert self._old is not None
        self._old.socket.close()
        self._old = None
        for flow in tuple(self._flows):
            if flow.host != self.host:
                if swallow:
                    flow.is_swallowed = True
                else:
                    flow.reset()

    def _listen(self) -> trio.SocketListener:
        sock = socket.create_server((self.host, self.port), backlog=_BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    async def _accept(self, listener: trio.SocketListener, host: str) -> None:
        async with trio.open_nursery() as nursery:
            with suppress(trio.ClosedResourceError):
                while True:
                    nursery.start_soon(self._forward, await listener.accept(), host)

    async def _forward(self, near: trio.SocketStream, host: str) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            _reset(near)
            return
        flow = _Flow(near, far, host)
        self._flows.add(flow)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, flow, far, near)
                await _pump(flow, near, far)
                if flow.is_swallowed:  # the gateway has closed the connection
                    nursery.cancel_scope.cancel()
        finally:
            self._flows.remove(flow)
            near.socket.close()
            far.socket.close()


async def _pump(flow: _Flow, source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        while data := await source.receive_some(_CHUNK):
            if not flow.is_swallowed:
                await sink.send_all(data)
        if not flow.is_swallowed:
            await sink.send_eof()
    except _ENDED:
        if not flow.is_swallowed:
            flow.reset()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    stream.socket.close()


#: Environment variable with the path of the file that the fake resolver reads.
_VARIABLE: Final = "FAKE_RESOLVER"


def resolver_environment(path: Path) -> dict[str, str]:
    """Return the environment variables that make a Python process resolve names by a file; see ``write_names``."""
    return {_VARIABLE: str(path), "PYTHONPATH": str(Path(__file__).with_name("resolver"))}


def write_names(path: Path, names: Mapping[str, str]) -> None:
    """Give each name its address; a lookup sees the old addresses or the new ones."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps({name: [address] for name, address in names.items()}))
    new.replace(path)
