"""The listeners of one process: added, removed and moved while it serves."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from gateway import log
from gateway.config import Address, ListenerConfig
from gateway.errors import ConfigError
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.listener import Listener
from gateway.front.listeners import Listeners
from gateway.listening import ListeningSockets, address_of, listening_sockets
from gateway.log import Throttle
from gateway.metrics import Metrics
from gateway.tls import TlsStream
from tests.kit.settings import listener_config, make_admission


class Served:
    """Listeners whose clients only connect."""

    def __init__(self, sockets: ListeningSockets) -> None:
        self.metrics = Metrics("test")
        self.sockets = sockets
        self.listeners = Listeners(self._build, sockets, metrics=self.metrics, log=log.get("test"))
        self.context = SSL.Context(SSL.TLS_METHOD)
        for name in sockets:
            self.listeners.add(listener_config(name), self.context)

    def _build(self, settings: ListenerConfig, context: SSL.Context) -> Listener:
        async def receive(_stream: TlsStream, _peer: str, _seconds: float) -> None:
            pass

        logger = log.get("test")
        return Listener(
            settings,
            context,
            receive,
            limit_reached=lambda: None,
            admission=make_admission(),
            errors=ConnectionErrors(settings.name, self.metrics, logger, Throttle()),
            metrics=self.metrics,
            log=logger,
            admitted_at_once=8,
        )

    async def change(self, *listeners: ListenerConfig) -> None:
        await self.listeners.prepare(listeners)
        self.listeners.use(listeners, {listener.name: self.context for listener in listeners}, set())
        await wait_all_tasks_blocked()

    def address(self, name: str) -> Address:
        return address_of(self.sockets[name])

    def accepting(self, name: str) -> float | None:
        value: float | None = self.metrics.registry.get_sample_value("kmip_gateway_accepting", {"listener": name})
        return value


def settings(name: str, port: int = 0) -> ListenerConfig:
    return listener_config(name).model_copy(update={"bind": Address("127.0.0.1", port)})


def is_served(address: Address) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((address.host, address.port)) == 0


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    with listening_sockets([settings("one")]) as sockets:
        served = Served(sockets)
        nursery.start_soon(served.listeners.run)
        await wait_all_tasks_blocked()
        yield served
        served.listeners.drain()
        await wait_all_tasks_blocked()


async def test_a_listener_is_added_and_another_removed(served: Served) -> None:
    first = served.address("one")
    await served.change(settings("one"), settings("two"))
    assert served.address("one") == first
    assert is_served(first)
    assert is_served(served.address("two"))
    await served.change(settings("two"))
    assert not is_served(first)
    assert is_served(served.address("two"))
    assert (served.accepting("one"), served.accepting("two")) == (None, 1)


async def test_a_moved_listener_still_counts_as_accepting(served: Served) -> None:
    first = served.address("one")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    await served.change(settings("one", port))
    assert not is_served(first)
    assert is_served(Address("127.0.0.1", port))
    assert served.accepting("one") == 1


async def test_an_added_listener_refuses_like_the_others(served: Served) -> None:
    served.listeners.stop_accepting()
    await served.change(settings("one"), settings("two"))
    served.listeners.stop_accepting()  # as the check of the key managers repeats five times a second
    assert not is_served(served.address("one"))
    assert not is_served(served.address("two"))
    served.listeners.resume_accepting()
    assert is_served(served.address("two"))


async def test_no_listener_changes_while_the_gateway_drains(served: Served) -> None:
    served.listeners.drain()
    with pytest.raises(ConfigError, match="drains"):
        await served.listeners.prepare([settings("two")])


async def test_a_listener_renamed_while_all_refuse_goes_on_refusing(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    await served.change(settings("one", port))
    served.listeners.stop_accepting()
    await served.change(settings("other", port))
    served.listeners.stop_accepting()
    assert not is_served(Address("127.0.0.1", port))
    served.listeners.resume_accepting()
    assert is_served(Address("127.0.0.1", port))
