"""TLS worker: a process that ends clients' TLS, and passes whole requests to the core.

It holds no credential of a key manager. Its listening sockets and TLS contexts come from the supervisor; its limits are
its share of the gateway's: of ``per_address`` and of the limits of half-open connections and of bytes held.
"""

import json
import math
import socket
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import trio
from OpenSSL import SSL

from gateway import log
from gateway.audit.refused import RefusedConnections
from gateway.config import Config, LimitsConfig, PerAddressConfig
from gateway.front.channel import Kind, Message
from gateway.front.pipe import Pipe
from gateway.front.relay import Relay, RelayLimits
from gateway.front.worker_report import ProcessFacts, report
from gateway.log import Throttle
from gateway.loop_lag import measure_loop_lag
from gateway.metrics import Metrics
from gateway.tls import ServerContext
from gateway.watchdog import Watchdog
from gateway.wiring import build_admission, build_listener

_REPORT_EVERY: Final = 1.0  # s
_ADMITTED_AT_ONCE: Final = 1  # of connections that come at once, so that the other workers get their share
_LOOK_EVERY: Final = 0.05  # s between two looks at whether the last client of a drained worker has ended


class TlsWorker:
    """One TLS worker. ``contexts`` holds the TLS context of each listener, ``core`` is the socket to the core."""

    def __init__(
        self,
        config: Config,
        contexts: Mapping[str, SSL.Context],
        core: socket.socket,
        *,
        workers: int,
    ) -> None:
        self._metrics = Metrics(version("kmip-gateway"))
        self._facts = ProcessFacts()
        self._pipe = Pipe(core, log.get("tls_worker"))
        admission = build_admission(share_of(config, workers))
        self._relay = Relay(self._pipe, admission)
        self._ticket_keys = {
            name: context.made_at for name, context in contexts.items() if isinstance(context, ServerContext)
        }
        self._draining = trio.Event()
        self._watchdog = Watchdog(config.gateway.watchdog, log.get("tls_worker"))
        throttle = Throttle()
        self._refused = RefusedConnections(self._send_event)
        self._listeners = {
            settings.name: build_listener(
                settings,
                contexts[settings.name],
                partial(
                    self._relay.receive,
                    listener=settings.name,
                    limits=RelayLimits(config.limits.max_request_size, settings.request_timeout, settings.send_timeout),
                ),
                limit_reached=lambda: None,
                admission=admission,
                metrics=self._metrics,
                throttle=throttle,
                refused=None if config.audit.to == "off" else self._refused,
                admitted_at_once=_ADMITTED_AT_ONCE,
            )
            for settings in config.listeners
        }

    async def run(self, sockets: Mapping[str, socket.socket]) -> None:
        """Serve the clients of the listening sockets until the core has ended, or until drained."""
        async with trio.open_nursery() as nursery:
            for name, listener in self._listeners.items():
                nursery.start_soon(listener.serve, sockets[name])
            nursery.start_soon(self._relay.look_for_left_clients)
            nursery.start_soon(self._report)
            nursery.start_soon(self._watchdog.run)
            nursery.start_soon(measure_loop_lag, self._metrics.event_loop_lag.labels("worker"))
            nursery.start_soon(self._end_when_drained)
            await self._pipe.run(self._handle)
            nursery.cancel_scope.cancel()

    def _handle(self, message: Message) -> None:
        if message.connection:
            self._relay.handle(message)
        elif message.kind == Kind.REFUSE:
            for listener in self._listeners.values():
                listener.pause()
        elif message.kind == Kind.ACCEPT:
            for listener in self._listeners.values():
                listener.resume()
        elif message.kind == Kind.LOG:
            log.adopt(json.loads(message.payload))
        elif message.kind == Kind.DRAIN:
            for listener in self._listeners.values():
                listener.drain()
            self._draining.set()
        elif message.kind == Kind.RETIRE:
            for listener in self._listeners.values():
                listener.retire()
            self._draining.set()

    def _send_event(self, event: str, facts: Mapping[str, Any]) -> None:
        self._pipe.send(Kind.AUDIT, 0, json.dumps([event, facts]).encode())

    def _reported(self) -> bytes:
        dropped, lines = log.messages_dropped(), log.take_unreported()
        return report(self._metrics, self._facts.read(), dropped, self._ticket_keys, lines)

    async def _report(self) -> None:
        while True:
            self._refused.flush()
            self._pipe.send(Kind.COUNTED, 0, self._reported())
            await trio.sleep(_REPORT_EVERY)

    async def _end_when_drained(self) -> None:
        await self._draining.wait()
        while self._pipe.held or any(map(len, self._listeners.values())):  # noqa: ASYNC110 - change with every request
            await trio.sleep(_LOOK_EVERY)
        self._refused.flush()
        self._pipe.send(Kind.COUNTED, 0, self._reported())
        self._pipe.close()


def share_of(config: Config, workers: int) -> Config:
    """Return the configuration with the limits of one of so many workers, rounded up."""

    def share(number: int) -> int:
        return math.ceil(number / workers)

    limits: LimitsConfig = config.limits.model_copy(
        update={
            "max_half_open": share(config.limits.max_half_open),
            "max_buffered": max(
                share(config.limits.max_buffered), config.limits.max_request_size + config.limits.max_response_size
            ),
        }
    )
    per_address: PerAddressConfig = config.per_address.model_copy(
        update={
            "max_clients": share(config.per_address.max_clients),
            "max_half_open": share(config.per_address.max_half_open),
            "handshakes_per_second": config.per_address.handshakes_per_second / workers,
        }
    )
    return config.model_copy(update={"limits": limits, "per_address": per_address, "identities": ()})
