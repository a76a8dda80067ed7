"""Drain: the times of its parts, and the last line of the log. Clients are stood in for by their numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import log
from gateway.config import DeadlinesConfig
from gateway.front.clients import Clients
from gateway.front.drain import Drain
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_request
from gateway.kmip.spec import Operation
from gateway.metrics import Metrics

REQUEST = decode_request(encode_request((1, 2), [Ask(Operation.QUERY)]))


@dataclass
class FakeClients:
    requests_in_flight: int = 0
    connections: int = 0


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("test")


async def serve(drain: Drain, seconds: float, clients: FakeClients | None = None) -> float:
    """Drain while a task serves for so many seconds; return the time that this takes."""
    began = trio.current_time()
    async with drain.bounding([cast("Clients", clients or FakeClients())]) as serving:
        serving.start_soon(trio.sleep, seconds)
        await drain.wait()
    return trio.current_time() - began


def deadlines(lame_duck: float, drain: float) -> DeadlinesConfig:
    return DeadlinesConfig(lame_duck=lame_duck, drain=drain)


@pytest.mark.parametrize(
    ("lame_duck", "drain", "work", "expected"),
    [
        (0.0, 10.0, 0.0, 0.0),
        (0.0, 10.0, 3.0, 3.0),
        (0.0, 10.0, 99.0, 10.0),
        (5.0, 10.0, 99.0, 15.0),
        (5.0, 1.0, 0.0, 5.0),
    ],
)
async def test_the_parts_take_their_time(
    metrics: Metrics, autojump_clock: MockClock, lame_duck: float, drain: float, work: float, expected: float
) -> None:
    autojump_clock.autojump_threshold = 0
    drained = Drain(deadlines(lame_duck, drain), metrics, log.get("core"))
    drained.begin()
    assert drained.has_begun
    assert await serve(drained, work) == pytest.approx(expected)


@pytest.mark.parametrize("after", [2.0, 7.0])
async def test_the_end_of_the_waiting_ends_lame_duck_and_drain(
    metrics: Metrics, autojump_clock: MockClock, after: float
) -> None:
    autojump_clock.autojump_threshold = 0
    drain = Drain(deadlines(5.0, 10.0), metrics, log.get("core"))
    drain.begin()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end() -> None:
            await trio.sleep(after)
            drain.end_waiting()

        assert await serve(drain, 99.0) == pytest.approx(after)


async def test_nothing_ends_before_the_drain_begins(metrics: Metrics, nursery: trio.Nursery) -> None:
    drain = Drain(deadlines(0.0, 10.0), metrics, log.get("core"))
    nursery.start_soon(serve, drain, 0.0)
    await wait_all_tasks_blocked(0.01)
    assert not drain.has_begun
    drain.begin()


async def test_the_last_line_counts_answers_since_the_beginning_and_what_is_cut_off(
    metrics: Metrics, autojump_clock: MockClock, lines: list[Any]
) -> None:
    autojump_clock.autojump_threshold = 0
    drain = Drain(deadlines(5.0, 10.0), metrics, log.get("core"))
    metrics.request_answered(REQUEST, "success", 0.0)
    drain.begin()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            for _ in range(3):
                await trio.sleep(3)
                metrics.request_answered(REQUEST, "success", 0.0)

        await serve(drain, 99.0, FakeClients(requests_in_flight=2, connections=4))
    assert [line["event"] for line in lines] == [
        "draining: /readyz fails, and clients are still accepted",
        "draining",
        "drained",
    ]
    last = lines[-1]
    assert (last["requests_answered"], last["requests_cut_off"], last["connections_cut_off"]) == (3, 2, 4)
