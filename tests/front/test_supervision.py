"""Messages between core and supervisor: each arrives whole, with its sockets."""

import resource
import socket
from contextlib import ExitStack

from gateway.config import Address
from gateway.front.supervision import (
    News,
    Order,
    receive_news,
    receive_order,
    send_order,
    send_prepared,
    send_worker,
    socket_pair,
)


def test_orders_arrive_one_by_one() -> None:
    with ExitStack() as stack:
        supervisor, core = (stack.enter_context(sock) for sock in socket_pair())
        for number, order in enumerate(Order):
            send_order(core, order, number)
        assert [receive_order(supervisor) for _ in Order] == [(order, number) for number, order in enumerate(Order)]
        core.close()
        assert receive_order(supervisor) is None


def test_a_worker_is_handed_over_with_its_place() -> None:
    with ExitStack() as stack:
        supervisor, core, here, there = (stack.enter_context(sock) for sock in (*socket_pair(), *socket.socketpair()))
        send_worker(supervisor, 3, 2, there)
        news = receive_news(core)
        assert news is not None
        assert (news.worker, news.generation) == (3, 2)
        with news.sockets[""] as worker:
            worker.sendall(b"from the worker")
        assert here.recv(100) == b"from the worker"


def test_an_answer_has_the_mistakes_or_the_sockets() -> None:
    with ExitStack() as stack:
        supervisor, core = (stack.enter_context(sock) for sock in socket_pair())
        first, second = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        binds = {"first": Address("127.0.0.1", 1), "second": Address("::1", 2)}
        send_prepared(supervisor, 5, [], binds, {"first": first, "second": second})
        news = receive_news(core)
        assert news is not None
        assert (news.number, news.binds) == (5, {"first": "127.0.0.1:1", "second": "[::1]:2"})
        received = {name: stack.enter_context(sock) for name, sock in news.sockets.items()}
        assert received["second"].getsockname() == second.getsockname()
        for character in ("x", "\x01", "\u20ac", "\U0001f511", "\udc80"):
            send_prepared(supervisor, 6, [character * 5000] * 500, {}, {})
            news = receive_news(core)
            assert news is not None
            assert news == News(None, 0, [character * 1000] * 20, {}, 6)
        supervisor.close()
        assert receive_news(core) is None


def test_sockets_that_do_not_fit_into_the_process_are_counted() -> None:
    with ExitStack() as stack:
        supervisor, core, _, there = (stack.enter_context(sock) for sock in (*socket_pair(), *socket.socketpair()))
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        send_worker(supervisor, 3, 2, there)
        send_prepared(supervisor, 1, [], {}, {"kmip": there, "second": there})
        for lost in (1, 2):
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
            try:
                news = receive_news(core)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
            assert news is not None
            assert news.sockets == {}
            assert news.lost == lost
