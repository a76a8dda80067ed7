"""The relay of a TLS worker: the memory and the time that it grants its clients; see test_conversation, too."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio

from gateway.config import LimitsConfig
from gateway.front.channel import Kind, Message
from gateway.kmip import compose, ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from tests.kit.front import ENDS_TLS_IN_WORKER, Front, number_of, open_front, request, until
from tests.kit.processes import Certificates

LARGE = compose.encode_request((2, 1), [compose.Ask(Operation.ENCRYPT, ttlv.octets(Tag.DATA, bytes(200_000)))])
LIMITS = LimitsConfig(max_request_size=1 << 20, max_buffered=1 << 20)


@pytest.fixture(autouse=True)
def _in_worker() -> None:
    ENDS_TLS_IN_WORKER.set(True)


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates, limits=LIMITS) as front:
        yield front


def held(front: Front) -> int:
    """Return the bytes that the worker holds."""
    assert front.relay is not None
    return front.relay._admission.buffered


async def test_the_beginning_of_a_request_is_held_and_released_at_its_end(front: Front) -> None:
    async with front.client() as client:
        await client.stream.send_all(LARGE[:150_000])
        await until(lambda: held(front) == 150_000)
        await client.stream.send_all(LARGE[150_000:])
        await client.read_response()
        await until(lambda: held(front) == 0)
    async with front.client() as leaving:
        await leaving.stream.send_all(LARGE[:100_000])
        await until(lambda: held(front) == 100_000)
    await until(lambda: held(front) == 0)


async def test_a_request_above_the_workers_share_is_refused(front: Front) -> None:
    async with front.client("alice") as holding, front.client("alice") as refused, front.client("bob") as other:
        await holding.stream.send_all(LARGE[:190_000])
        await until(lambda: held(front) == 190_000)
        two = ttlv.octets(Tag.DATA, bytes(900_000))
        await refused.stream.send_all(compose.encode_request((2, 1), [compose.Ask(Operation.ENCRYPT, two)])[:880_000])
        answer = await refused.read_response()
        assert answer.items[0].reason in {ResultReason.GENERAL_FAILURE, ResultReason.SERVER_LIMIT_EXCEEDED}
        assert number_of(await other.ask(request(3))) == 3
    assert front.refusals["overloaded"] == 1


async def test_a_drain_closes_an_idle_client_and_no_other(front: Front) -> None:
    async with front.client() as idle, front.client() as begun:
        await begun.ask(request())
        await begun.stream.send_all(request(1)[:20])
        await until(lambda: front.is_reading)
        front.drain()
        assert await idle.stream.receive_some() == b""
        await begun.stream.send_all(request(1)[20:])
        assert number_of(await begun.read_response()) == 1


async def test_a_request_that_meets_the_end_of_a_drain_resets_nothing(front: Front) -> None:
    """A reset could destroy the answer before it, and a load balancer counts it as an error of the gateway.

    The core, which took the client for idle, has said so when a request was on its way.
    """
    assert front.relay is not None
    async with front.client() as client:
        await client.ask(request())
        await client.stream.send_all(request(1)[:20])
        await until(lambda: front.is_reading)
        (number,) = front.relay._clients
        front.relay.handle(Message(Kind.CLOSE_IF_IDLE, number, b""))
        await client.stream.send_all(request(1)[20:])
        assert number_of(await client.read_response()) == 1
        await trio.sleep(0.05)
        await client.stream.send_all(request(2))
        await trio.sleep(0.05)
        assert await client.stream.receive_some() == b""
        assert client.stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
