"""Messages between core and supervisor: each arrives whole, with its sockets."""

import socket
from contextlib import ExitStack

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
        for order in (Order.PREPARE, Order.USE, Order.DRAIN):
            send_order(core, order)
        assert [receive_order(supervisor) for _ in range(3)] == [Order.PREPARE, Order.USE, Order.DRAIN]
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
        send_prepared(supervisor, [], {"first": first, "second": second})
        news = receive_news(core)
        assert news is not None
        received = {name: stack.enter_context(sock) for name, sock in news.sockets.items()}
        assert received["second"].getsockname() == second.getsockname()
        send_prepared(supervisor, ["x" * 5000] * 500, {})
        news = receive_news(core)
        assert news is not None
        assert news == News(None, 0, ["x" * 1000] * 20, {})
        supervisor.close()
        assert receive_news(core) is None
