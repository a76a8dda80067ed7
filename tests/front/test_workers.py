"""The TLS workers of a core: their starts and ends, and listening sockets that all processes share."""

import resource
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import log
from gateway.config import Address, DeadlinesConfig, ListenerConfig
from gateway.errors import ConfigError
from gateway.front import workers as front_workers
from gateway.front.channel import Kind, Message
from gateway.front.pipe import Pipe
from gateway.front.supervision import Order, receive_order, send_prepared, send_worker, socket_pair
from gateway.front.worker_report import ProcessFacts, report
from gateway.front.workers import TlsWorkers
from gateway.listening import ListeningSockets, listen, listening_sockets
from gateway.metrics import Metrics

KMIP = ListenerConfig.model_construct(name="kmip", bind=Address("127.0.0.1", 0))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = metrics.registry.get_sample_value(f"kmip_gateway_{name}", labels)
    return found


class Supervised:
    """TLS workers of a core, with the supervisor's end of their socket, and the workers' ends of their pipes."""

    def __init__(self, sockets: ListeningSockets) -> None:
        self.listening = sockets["kmip"]
        self.metrics = Metrics("test")
        self.supervisor, self.of_core = socket_pair()
        self.drains = 0
        self.workers = TlsWorkers(
            self.of_core,
            {},
            sockets,
            deadlines=DeadlinesConfig(),
            drain=self._drain,
            metrics=self.metrics,
            log=log.get("test"),
        )
        self.heard: list[list[Message]] = []

    def _drain(self) -> None:
        self.drains += 1

    def start(self, nursery: trio.Nursery, index: int = 0, generation: int = 0) -> Pipe:
        """Hand over a worker; return its end of the pipe."""
        of_worker, of_core = socket.socketpair()
        send_worker(self.supervisor, index, generation, of_core)
        of_core.close()
        pipe = Pipe(of_worker, log.get("test"))
        self.heard.append([])
        nursery.start_soon(pipe.run, self.heard[-1].append)
        return pipe


@pytest.fixture
async def supervised(nursery: trio.Nursery) -> AsyncIterator[Supervised]:
    with listening_sockets([KMIP]) as sockets:
        supervised = Supervised(sockets)
        nursery.start_soon(supervised.workers.run)
        yield supervised
        nursery.cancel_scope.cancel()
        supervised.supervisor.close()
        supervised.of_core.close()


async def test_all_workers_refuse_and_accept_together(supervised: Supervised, nursery: trio.Nursery) -> None:
    pipes = [supervised.start(nursery)]
    await wait_all_tasks_blocked()
    supervised.workers.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(supervised.listening.getsockname())
    pipes.append(supervised.start(nursery))  # a worker that is started meanwhile refuses, too
    await wait_all_tasks_blocked()
    assert value(supervised.metrics, "accepting", listener="kmip") == 0
    supervised.workers.resume_accepting()
    socket.create_connection(supervised.listening.getsockname()).close()
    await wait_all_tasks_blocked()
    kinds = [[message.kind for message in heard] for heard in supervised.heard]
    assert kinds == [[Kind.REFUSE, Kind.ACCEPT]] * 2
    assert value(supervised.metrics, "accepting", listener="kmip") == 1
    for pipe in pipes:
        pipe.close()


async def test_a_drain_refuses_connections_and_reaches_every_worker(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipe = supervised.start(nursery)
    await wait_all_tasks_blocked()
    assert len(supervised.workers) == 1
    supervised.workers.drain()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(supervised.listening.getsockname())
    await wait_all_tasks_blocked()
    assert supervised.heard[0][-1].kind == Kind.DRAIN
    pipe.close()
    await wait_all_tasks_blocked()
    assert len(supervised.workers) == 0


async def renew(supervised: Supervised) -> None:
    """Reload with a supervisor that has no mistakes to tell, and nothing to open."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised.workers.prepare, [KMIP])
        await trio.lowlevel.wait_readable(supervised.supervisor)
        answer(supervised)
    supervised.workers.use()
    assert receive_order(supervised.supervisor) == (Order.USE, 0)


def answer(
    supervised: Supervised,
    mistakes: Sequence[str] = (),
    listeners: Sequence[ListenerConfig] = (KMIP,),
    opened: Mapping[str, socket.socket] | None = None,
) -> None:
    """Answer PREPARE as the supervisor does."""
    received = receive_order(supervised.supervisor)
    assert received is not None
    order, number = received
    assert order is Order.PREPARE
    binds = {listener.name: listener.bind for listener in listeners}
    send_prepared(supervised.supervisor, number, mistakes, binds, opened or {})


async def test_each_worker_retires_when_its_successor_has_come(supervised: Supervised, nursery: trio.Nursery) -> None:
    pipes = [supervised.start(nursery, index) for index in (0, 1)]
    await wait_all_tasks_blocked()
    await renew(supervised)
    await wait_all_tasks_blocked()
    assert supervised.heard == [[], []]
    pipes.append(supervised.start(nursery, 1, generation=1))
    await wait_all_tasks_blocked()
    kinds = [[message.kind for message in heard] for heard in supervised.heard]
    assert kinds == [[], [Kind.RETIRE], []]
    pipes.append(supervised.start(nursery, 1, generation=1))  # started again after a death: its predecessor is no older
    await wait_all_tasks_blocked()
    assert supervised.heard[2] == []
    for pipe in pipes:
        pipe.close()


async def test_a_worker_started_just_before_a_reload_retires_too(supervised: Supervised, nursery: trio.Nursery) -> None:
    await renew(supervised)
    pipes = [supervised.start(nursery), supervised.start(nursery, generation=1)]  # the first was on its way
    await wait_all_tasks_blocked()
    assert [[message.kind for message in heard] for heard in supervised.heard] == [[Kind.RETIRE], []]
    for pipe in pipes:
        pipe.close()


async def test_mistakes_of_the_supervisor_are_those_of_the_reload(supervised: Supervised) -> None:
    async def answer_soon() -> None:
        await wait_all_tasks_blocked()
        answer(supervised, ["a mistake"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_soon)
        with pytest.raises(ConfigError) as caught:
            await supervised.workers.prepare([KMIP])
    assert caught.value.mistakes == ["a mistake"]
    assert receive_order(supervised.supervisor) == (Order.FORGET, 0)
    supervised.workers.use()  # uses nothing
    with pytest.raises(BlockingIOError):
        supervised.supervisor.recv(100, socket.MSG_DONTWAIT)


async def test_a_file_that_changes_while_it_is_read_opens_no_listener(supervised: Supervised) -> None:
    """The core has read one listener, and the supervisor two: nobody would serve the second one's clients."""
    second = ListenerConfig.model_construct(name="second", bind=Address("127.0.0.1", 0))
    with listen("second", second.bind) as sock:
        address = sock.getsockname()

        async def answer_soon() -> None:
            await wait_all_tasks_blocked()
            answer(supervised, [], [KMIP, second], {"second": sock})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_soon)
            with pytest.raises(ConfigError, match="has changed while it was read"):
                await supervised.workers.prepare([KMIP])
        assert receive_order(supervised.supervisor) == (Order.FORGET, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_workers, "_ANSWER_WITHIN", 0.05)
    second = ListenerConfig.model_construct(name="second", bind=Address("127.0.0.1", 0))
    with listen("second", second.bind) as sock:
        address = sock.getsockname()
        with pytest.raises(ConfigError, match="the supervisor does not answer"):
            await supervised.workers.prepare([KMIP, second])
        answer(supervised, [], [KMIP, second], {"second": sock})
    assert receive_order(supervised.supervisor) == (Order.FORGET, 0)
    await wait_all_tasks_blocked()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    monkeypatch.setattr(front_workers, "_ANSWER_WITHIN", 30.0)
    await renew(supervised)


async def test_a_core_without_descriptors_goes_on_and_another_worker_comes(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    lost = supervised.start(nursery)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    try:
        await wait_all_tasks_blocked()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    assert len(supervised.workers) == 0
    assert lost.is_closed  # so that the worker ends
    pipe = supervised.start(nursery)
    await wait_all_tasks_blocked()
    assert len(supervised.workers) == 1
    pipe.close()


async def test_a_worker_on_its_way_when_the_drain_begins_drains_too(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    await wait_all_tasks_blocked()
    pipe = supervised.start(nursery)
    supervised.workers.drain()
    supervised.supervisor.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert supervised.heard[0][-1].kind == Kind.DRAIN
    pipe.close()
    await wait_all_tasks_blocked()
    assert supervised.drains == 0


async def test_earlier_generations_let_go_of_their_clients_and_a_fifth_waits(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipes = []
    for generation in range(4):
        pipes.append(supervised.start(nursery, generation=generation))
        await wait_all_tasks_blocked()
        await renew(supervised)
    assert [worker.dismissed.is_set() for worker in supervised.workers._workers] == [True, True, False, False]
    pipes.append(supervised.start(nursery, generation=4))
    with trio.move_on_after(0.3) as waited:
        await supervised.workers.prepare([KMIP])
    assert waited.cancelled_caught
    pipes[0].close()
    await renew(supervised)
    for pipe in pipes:
        pipe.close()


async def test_a_listener_that_is_added_gets_its_socket_and_a_removed_one_refuses(supervised: Supervised) -> None:
    second = ListenerConfig.model_construct(name="second", bind=Address("127.0.0.1", 0))
    with listen("second", second.bind) as sock:
        address = sock.getsockname()

        async def answer_soon() -> None:
            await wait_all_tasks_blocked()
            answer(supervised, [], [second], {"second": sock})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_soon)
            await supervised.workers.prepare([second])
    before = supervised.listening.getsockname()
    supervised.workers.use()
    socket.create_connection(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(before)
    assert value(supervised.metrics, "accepting", listener="second") == 1
    assert value(supervised.metrics, "accepting", listener="kmip") is None


async def test_the_end_of_the_supervisor_drains_the_core(supervised: Supervised) -> None:
    supervised.supervisor.close()
    await wait_all_tasks_blocked()
    assert supervised.drains == 1


async def test_the_age_of_ticket_keys_is_that_of_the_newest_worker(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipes = [supervised.start(nursery, generation=generation) for generation in range(2)]
    await wait_all_tasks_blocked()
    for pipe, keys in zip(pipes, ({"kmip": 10.0, "removed": 5.0}, {"kmip": 30.0}), strict=True):
        pipe.send(Kind.COUNTED, 0, report(Metrics("test"), ProcessFacts().read(), 0, keys))
    await wait_all_tasks_blocked()
    assert supervised.workers.ticket_keys_made_at() == {"kmip": 30.0}
    for pipe in pipes:
        pipe.close()


async def test_clients_of_a_replaced_worker_are_counted_apart_from_its_successor(
    supervised: Supervised, nursery: trio.Nursery
) -> None:
    pipes = [supervised.start(nursery, generation=generation) for generation in range(2)]
    await wait_all_tasks_blocked()
    for worker, clients in zip(supervised.workers._workers, (3, 4), strict=True):
        worker.links._links = dict.fromkeys(range(clients))  # type: ignore[assignment]
    assert supervised.workers.clients_by_worker() == [(0, False, 4), (0, True, 3)]
    for worker in supervised.workers._workers:
        worker.links._links = {}
    for pipe in pipes:
        pipe.close()
