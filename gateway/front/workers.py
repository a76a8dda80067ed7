"""The TLS workers of a core: their connections, their counts, and the listening sockets that they share."""

import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from gateway.audit.refused import AddEvent
from gateway.config import DeadlinesConfig, ListenerConfig
from gateway.errors import ConfigError
from gateway.fast_metrics import Reading
from gateway.front.channel import Kind
from gateway.front.clients import Clients
from gateway.front.listeners import DRAINING
from gateway.front.pipe import Pipe
from gateway.front.supervision import News, Order, receive_news, send_order
from gateway.front.worker_link import WorkerLink, WorkerLinks
from gateway.front.worker_report import WorkerCounts
from gateway.listening import (
    ListeningSockets,
    NextSockets,
    accept_connections,
    address_of,
    refuse_connections,
    stop_listening,
)
from gateway.log import Log
from gateway.log import state as log_state
from gateway.metrics import Metrics

_KEPT_GENERATIONS: Final = 2  # of replaced workers that keep their clients; earlier ones let go of them
_MOST_GENERATIONS: Final = 4  # of replaced workers; the next reload that needs new workers waits
_LOOK_EVERY: Final = 0.1  # s between two looks at whether one of these has ended
_LET_GO_AGAIN: Final = 1.0  # s
_ANSWER_WITHIN: Final = 30.0  # s for the supervisor to read the file
_LAST_NEWS_WITHIN: Final = 5.0  # s for workers that are on their way when a drain begins: they must drain, too


class _Worker:
    """One TLS worker: its connections, its place, and how far it is from its end.

    ``generation`` counts the times that all workers were replaced before it was started.
    """

    def __init__(self, links: WorkerLinks, counts: WorkerCounts, index: int, generation: int) -> None:
        self.links = links
        self.counts = counts
        self.index = index
        self.generation = generation
        self.retired = trio.Event()  # its successor has come
        self.dismissed = trio.Event()  # to let go of its clients now

    def __repr__(self) -> str:
        return f"<_Worker {self.index} of generation {self.generation}, {len(self.links)} clients>"


class TlsWorkers:
    """The TLS workers that serve the clients of a core.

    ``supervisor`` is the socket over which the supervisor hands over a socket to each worker that it has started, and
    over which it is told to start others: see ``supervision``. ``sockets`` are this process's copies of the listening
    sockets. ``drain`` drains the core: it is called if the supervisor ends first.
    ``add_event`` takes the workers' events for the audit trail, if there is one.
    """

    def __init__(
        self,
        supervisor: socket.socket,
        clients: Mapping[str, Clients],
        sockets: ListeningSockets,
        *,
        deadlines: DeadlinesConfig,
        drain: Callable[[], None],
        metrics: Metrics,
        log: Log,
        add_event: AddEvent | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._add_event = add_event
        self._drain_core = drain
        self._clients = clients
        self._sockets = sockets
        self._deadlines = deadlines
        self._metrics = metrics
        self._log = log
        self._workers: list[_Worker] = []
        self._generation = 0
        self._answer: News | None = None  # to the last PREPARE
        self._answered = trio.Event()
        self._asked = 0  # PREPARE orders so far
        self._awaited = 0  # number of the order of which the answer is awaited; 0 if none is
        self._next: NextSockets | None = None
        self._log_changed = False
        self._is_accepting = True
        self._draining = False
        self._taking = trio.CancelScope()  # of new workers
        self._last_generations: dict[int, int] = {}  # of the worker that was started last, by index
        self.log_messages_dropped = 0  # by all workers since the start
        metrics.worker_memory.set_function(lambda: self._by_index("memory"))
        metrics.worker_descriptors.set_function(lambda: self._by_index("descriptors"))
        for name in sockets:
            metrics.accepting.labels(name).set(1)

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        return f"<TlsWorkers: {len(self)}, {sum(len(worker.links) for worker in self._workers)} clients>"

    async def run(self) -> None:
        """Serve the clients of all workers until drained."""
        self._supervisor.setblocking(False)
        async with trio.open_nursery() as nursery:
            try:
                with self._taking:
                    await self._take_news(nursery)
            finally:
                self._answered.set()  # no answer comes any more

    async def _take_news(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._supervisor)
            news = receive_news(self._supervisor)
            if news is None:
                if not self._draining:
                    self._log.error("draining: the supervisor has ended")
                    self._drain_core()
                return
            if news.worker is None and news.number == self._awaited:
                self._answer = news
                self._answered.set()
            elif news.worker is None:  # too late: the reload has failed
                news.close()
            elif news.lost:  # the worker ends, and another one is started
                self._log.error("cannot serve a TLS worker: out of file descriptors; raise the limit of the process")
            else:
                nursery.start_soon(self._serve, news.sockets[""], news.worker, news.generation)

    def ticket_keys_made_at(self) -> dict[str, float]:
        """Return, for each listener, the time at which the keys of its tickets were made; after a reload, the new ones.

        The time is that of the monotonic clock. The workers of a generation share the keys.
        """
        made: dict[str, float] = {}
        for worker in self._workers:
            for name, made_at in worker.counts.ticket_keys.items():
                made[name] = max(made_at, made.get(name, made_at))
        return {name: made[name] for name in self._sockets if name in made}

    def _add_dropped(self, number: int) -> None:
        self.log_messages_dropped += number

    def _by_index(self, fact: str) -> list[Reading]:
        """Return a fact about the processes of workers; that of a worker includes its predecessors with clients."""
        sums: dict[str, float] = {}
        for worker in self._workers:
            index = str(worker.index)
            sums[index] = sums.get(index, 0.0) + worker.counts.process.get(fact, 0.0)
        return [((index,), number) for index, number in sums.items()]

    async def _serve(self, sock: socket.socket, index: int, generation: int) -> None:
        pipe, counts = Pipe(sock, self._log), WorkerCounts(self._metrics, index, self._add_dropped)
        worker = _Worker(WorkerLinks(pipe, self._receive, counts.take, self._take_event), counts, index, generation)
        restarts = self._metrics.worker_restarts.labels(str(index))
        if self._last_generations.get(index) == generation:
            restarts.inc()
        self._last_generations[index] = generation
        self._retire_predecessors(worker)
        self._workers.append(worker)
        self._log.info("TLS worker started", worker=index)
        try:
            if self._log_changed:
                pipe.send(Kind.LOG, 0, json.dumps(log_state()).encode())
            if not self._is_accepting:
                pipe.send(Kind.REFUSE)
            if self._draining:
                pipe.send(Kind.DRAIN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._let_go_when_retired, worker)
                await worker.links.run()
                nursery.cancel_scope.cancel()
        finally:
            self._workers.remove(worker)
            counts.end()
            pipe.close()

    def _take_event(self, payload: bytes) -> None:
        if self._add_event is not None:
            event, facts = json.loads(payload)
            self._add_event(event, facts)

    # Reload ----------------------------------------------------------------------------------------------------------

    async def prepare(self, listeners: Sequence[ListenerConfig]) -> None:
        """Have the supervisor prepare new workers with the configuration file as it is. Raises ConfigError.

        While workers of too many earlier generations are still about to end, wait: they may not pile up.
        """
        self.forget()
        while len(self._replaced()) >= _MOST_GENERATIONS and not self._draining:  # noqa: ASYNC110 - seldom
            await trio.sleep(_LOOK_EVERY)
        if self._draining:
            raise ConfigError([DRAINING])
        answer = await self._ask_supervisor()
        binds = {listener.name: listener.bind for listener in listeners}
        mistakes = [*answer.mistakes]
        if answer.lost:
            mistakes = ["the gateway is out of file descriptors; raise the limit of the process"]
        elif not mistakes and answer.binds != {name: str(bind) for name, bind in binds.items()}:
            mistakes = ["the configuration file has changed while it was read; reload again"]
        self._next = NextSockets(binds, answer.sockets)
        if mistakes:
            self.forget()
            raise ConfigError(mistakes)

    async def _ask_supervisor(self) -> News:
        """Return the supervisor's answer to PREPARE. Raises ConfigError if none comes in time."""
        self._asked += 1
        self._awaited = self._asked
        self._answered, self._answer = trio.Event(), None
        self._order(Order.PREPARE, self._asked)
        try:
            with trio.move_on_after(_ANSWER_WITHIN):
                await self._answered.wait()
        finally:
            self._awaited = 0
        if self._answer is None:
            self._order(Order.FORGET)  # it may answer later
            raise ConfigError([DRAINING if self._draining else "the supervisor does not answer"])
        return self._answer

    def _order(self, order: Order, number: int = 0) -> None:
        with suppress(OSError):  # the supervisor has ended, which is noticed next
            send_order(self._supervisor, order, number)

    def forget(self) -> None:
        """Close what was prepared and is not used, here and in the supervisor: a port must not listen for nobody."""
        if self._next is not None:
            self._next.close()
            self._next = None
            self._order(Order.FORGET)

    def use(self, _listeners: object = None, _contexts: object = None, _changed: object = None) -> None:
        """Have the supervisor start the workers that were prepared.

        Each worker stops accepting when its successor has come, keeps its clients for ``[deadlines] retire`` seconds,
        and ends after the last one. If there are workers of more than two earlier generations, the oldest let go of
        their clients at once.
        """
        if self._next is None or self._draining:
            self.forget()
            return
        following, self._next = self._next, None
        before = set(self._sockets)
        replaced = self._sockets.use(following)
        for sock in replaced:
            if not self._sockets.listens_on(sock):
                stop_listening(sock)
            sock.close()
        for name in before - following.binds.keys():
            self._metrics.accepting.remove(name)
        for name, sock in following.opened.items():
            self._metrics.accepting.labels(name).set(self._is_accepting)
            if not self._is_accepting:
                refuse_connections(sock)
            self._log.info("listening", listener=name, address=str(address_of(sock)))
        self._generation += 1
        earliest = self._replaced()[:-_KEPT_GENERATIONS]
        for worker in self._workers:
            if worker.generation in earliest:
                worker.dismissed.set()
        self._order(Order.USE)

    def _replaced(self) -> list[int]:
        """Return the generations of workers that were replaced and have not ended, the earliest first."""
        return sorted({worker.generation for worker in self._workers if worker.generation < self._generation})

    def _retire_predecessors(self, successor: _Worker) -> None:
        for worker in self._workers:
            if worker.index == successor.index and worker.generation < successor.generation:
                if not worker.retired.is_set():
                    worker.links.pipe.send(Kind.RETIRE)
                worker.retired.set()

    async def _let_go_when_retired(self, worker: _Worker) -> None:
        await worker.retired.wait()
        with trio.move_on_after(self._deadlines.retire):
            await worker.dismissed.wait()
        while True:  # also the clients whose handshakes end later
            async with trio.open_nursery() as nursery:
                for clients in self._clients.values():
                    nursery.start_soon(clients.let_go, worker.links)
            await trio.sleep(_LET_GO_AGAIN)

    async def _receive(self, link: WorkerLink) -> None:
        opening = link.opening
        self._metrics.handshake_succeeded(opening.listener, opening.version, opening.seconds, resumed=opening.resumed)
        try:
            clients = self._clients.get(opening.listener)  # None: the listener was removed, and its clients have left
            if clients is not None:
                await clients.receive(link, opening.peer)
        finally:
            link.close()

    # Accepting -------------------------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Have the kernel refuse new connections on all listeners."""
        self._stop_accepting(self._sockets)

    def _stop_accepting(self, refusing: Collection[str]) -> None:
        """Accept no new connections; those of the listeners in ``refusing`` are refused, the others wait."""
        if self._is_accepting:
            self._is_accepting = False
            self._send_to_all(Kind.REFUSE)
            for name, sock in self._sockets.items():
                if name in refusing:
                    refuse_connections(sock)
                self._metrics.accepting.labels(name).set(0)

    def resume_accepting(self) -> None:
        """Accept new connections again. If the kernel refuses to listen, log it; the caller tries again later."""
        if self._is_accepting or self._draining:
            return
        try:
            for sock in self._sockets.values():
                accept_connections(sock)
        except OSError as error:
            self._log.warning("cannot listen: another process may use the port; trying again", reason=error.strerror)
            return
        for name in self._sockets:
            self._metrics.accepting.labels(name).set(1)
        self._is_accepting = True
        self._send_to_all(Kind.ACCEPT)

    def drain(self) -> None:
        """Take no new clients; each worker ends when its last client has ended."""
        self._stop_accepting([name for name in self._sockets if name not in self._sockets.inherited])
        self._draining = True
        self._order(Order.DRAIN)
        self._send_to_all(Kind.DRAIN)
        self._taking.deadline = trio.current_time() + _LAST_NEWS_WITHIN
        self._answered.set()

    def log_changed(self) -> None:
        """Have all workers log as this process does, also those that start later."""
        self._log_changed = True
        self._send_to_all(Kind.LOG, json.dumps(log_state()).encode())

    def clients_by_worker(self) -> list[tuple[int, bool, int]]:
        """Return, for each worker, its index, if it was replaced by a reload, and its number of clients, in this order.

        A worker and its predecessors have the same index.
        """
        return sorted((worker.index, worker.retired.is_set(), len(worker.links)) for worker in self._workers)

    def _send_to_all(self, kind: Kind, payload: bytes = b"") -> None:
        for worker in self._workers:
            worker.links.pipe.send(kind, 0, payload)
