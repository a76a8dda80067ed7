"""Parts of a request's path by themselves, in this process: the codec, and the dispatcher over pools in memory."""

from functools import partial
from typing import Final

import structlog
import trio
import trio.testing

from gateway.config import PoolConfig
from gateway.dispatcher import Dispatcher, DispatcherSettings
from gateway.identity import Identity, Principal
from gateway.kmip.decode import decode_request, decode_response
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.pool import Pool
from gateway.upstream.pool_observer import PoolObserver
from gateway.upstream.session import Session
from gateway.upstream.slots import Slots
from tests.benchmarks.serving import Size, request_frame, response_frame
from tests.kit.fake_backends import DEADLINES, FAILOVER, LIMITS, validated

_CREDENTIAL: Final = "everyone"
_PRINCIPAL: Final = Principal(Identity(_CREDENTIAL, shared=True), "CN=CA", "CN=alice", 0.0, float("inf"))


def decode_requests(count: int, size: Size) -> None:
    """Decode a request ``count`` times."""
    frame = request_frame(size)
    for _ in range(count):
        decode_request(frame)


def decode_responses(count: int, size: Size) -> None:
    """Decode a response ``count`` times."""
    frame = response_frame(decode_request(request_frame(size)), size)
    for _ in range(count):
        decode_response(frame)


class _Echo:
    """A connection that has the same answer for every request at once."""

    is_flooded = False

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.spoke_unasked = False

    async def receive_some(self) -> bytes:
        """Return the answer, whole."""
        return self._answer

    async def send_all(self, data: bytes) -> None:
        """Do nothing."""

    def is_quiet(self) -> bool:
        """Return True: the peer sends nothing unasked."""
        return True

    def is_readable(self) -> bool:
        """Return False: every answer is read whole."""
        return False

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return False for any time: no byte waits to be acknowledged."""
        return seconds < 0

    def interrupt(self) -> None:
        """Do nothing: no reader waits."""

    def close(self) -> None:
        """Do nothing."""

    def close_politely(self) -> None:
        """Do nothing."""


def dispatch(count: int, size: Size) -> None:
    """Dispatch ``count`` requests one after the other, without TLS, sockets or waiting."""
    trio.run(_dispatch, count, size)


async def _dispatch(count: int, size: Size) -> None:
    request = decode_request(request_frame(size))
    answer = response_frame(request, size)
    metrics = Metrics("0")
    async with trio.open_nursery() as nursery:
        backends = [_backend(f"kms-{index}", answer, size, metrics, nursery) for index in range(size.backends)]
        for backend in backends:
            for pool in backend.pools.values():
                pool.maintain()
        await trio.testing.wait_all_tasks_blocked()
        dispatcher = Dispatcher(Balancer(backends), DispatcherSettings(), metrics=metrics)
        for _ in range(count):
            answered = await dispatcher.dispatch(request, _PRINCIPAL)
            assert answered.response is not None
        metrics.flush()


def _backend(name: str, answer: bytes, size: Size, metrics: Metrics, nursery: trio.Nursery) -> Backend:
    async def open_session() -> Session:
        return validated(Session(_Echo(answer), name, limits=LIMITS))

    slots = Slots(1000)
    credentials = [_CREDENTIAL, *(f"unused-{index}" for index in range(1, size.identities))]
    make = partial(
        Pool, name, deadlines=DEADLINES, failover=FAILOVER, slots=slots, opener=open_session, spawn=nursery.start_soon
    )
    log = structlog.wrap_logger(None)
    return Backend(
        name,
        slots,
        {
            credential: make(
                credential,
                PoolConfig(min_idle=size.pool),
                observer=PoolObserver(name, credential, metrics, log),
            )
            for credential in credentials
        },
    )
