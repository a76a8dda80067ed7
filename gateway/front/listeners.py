"""The listeners of a process that ends TLS itself: they come and go with the configuration."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio
from OpenSSL import SSL

from gateway.config import ListenerConfig
from gateway.errors import ConfigError
from gateway.front.listener import Listener
from gateway.listening import ListeningSockets, NextSockets, address_of, stop_listening
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.tls import ServerContext

#: The mistake of a reload that changes listeners while the gateway drains.
DRAINING: Final = "the gateway drains: its listeners do not change any more"


class Listeners:
    """All listeners, by name. ``build`` returns the listener for a table and a TLS context.

    ``sockets`` are open; each listener closes its own when it stops accepting. A reload calls ``prepare``, and ``use``.
    """

    def __init__(
        self,
        build: Callable[[ListenerConfig, SSL.Context], Listener],
        sockets: ListeningSockets,
        *,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._build = build
        self._sockets = sockets
        self._metrics = metrics
        self._log = log
        self._listeners: dict[str, Listener] = {}
        self._contexts: dict[str, SSL.Context] = {}
        self._next: NextSockets | None = None
        self._serving: set[Listener] = set()  # with those that have clients and accept no more
        self._nursery: trio.Nursery | None = None  # while ``run`` runs
        self._draining = trio.Event()

    def __repr__(self) -> str:
        return f"<Listeners {', '.join(self._listeners)}>"

    def ticket_keys_made_at(self) -> dict[str, float]:
        """Return, for each listener, the time of the monotonic clock at which the keys of its tickets were made."""
        return {name: context.made_at for name, context in self._contexts.items() if isinstance(context, ServerContext)}

    def __getitem__(self, name: str) -> Listener:
        return self._listeners[name]

    def add(self, settings: ListenerConfig, context: SSL.Context) -> None:
        """Have a listener for a table, in the place of one with the same name. It accepts from ``run`` on."""
        name = settings.name
        self._contexts[name] = context
        self._listeners[name] = self._build(settings, context)
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, self._listeners[name], self._sockets[name])

    async def _serve(self, listener: Listener, sock: socket.socket) -> None:
        self._serving.add(listener)
        try:
            await listener.serve(sock)
        finally:
            self._serving.discard(listener)

    async def run(self) -> None:
        """Serve the clients of all listeners until drained; return when the last client has ended."""
        async with trio.open_nursery() as self._nursery:
            for name, listener in self._listeners.items():
                self._nursery.start_soon(self._serve, listener, self._sockets[name])
            await self._draining.wait()

    async def prepare(self, listeners: Sequence[ListenerConfig]) -> None:
        """Open the sockets that these listeners lack. Raises ConfigError, and opens none, if one can't be had."""
        self.forget()
        if self._draining.is_set():
            raise ConfigError([DRAINING])
        self._next = self._sockets.prepare(listeners)

    def forget(self) -> None:
        """Close what was prepared and is not used."""
        if self._next is not None:
            self._next.close()
            self._next = None

    def use(self, listeners: Sequence[ListenerConfig], contexts: Mapping[str, SSL.Context], changed: set[str]) -> None:
        """Have these listeners, for which ``prepare`` was called. The clients of all others stay.

        ``contexts`` has the TLS contexts that are new, ``changed`` the listeners of which settings have changed.
        """
        if self._next is None or self._draining.is_set():
            self.forget()
            return
        following, self._next = self._next, None
        before = self._listeners
        self._listeners = {name: listener for name, listener in before.items() if name in following.binds}
        replaced = self._sockets.use(following)
        for sock in replaced:
            if not self._sockets.listens_on(sock):
                stop_listening(sock)
        for name, listener in before.items():
            if name not in following.binds or name in following.opened:
                listener.retire()
            if name not in following.binds:
                self._metrics.accepting.remove(name)
                del self._contexts[name]
        for settings in listeners:
            name = settings.name
            if name in following.opened:
                self.add(settings, contexts.get(name) or self._contexts[name])
                self._log.info("listening", listener=name, address=str(address_of(self._sockets[name])))
            elif name in changed or name in contexts:
                self._contexts[name] = contexts.get(name) or self._contexts[name]
                self._listeners[name].settings_changed(contexts.get(name))

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections on all listeners."""
        for listener in self._listeners.values():
            listener.stop_accepting()

    def resume_accepting(self) -> None:
        """Accept new connections again."""
        for listener in self._listeners.values():
            listener.resume_accepting()

    def drain(self) -> None:
        """Stop accepting, and end all handshakes; ``run`` returns when the last client has ended."""
        self._draining.set()
        for listener in {*self._listeners.values(), *self._serving}:
            listener.drain()
