"""The keeper: goes round a backend's pools, keeps them warm, and acts when the backend turns up or down."""

from collections.abc import Collection
from functools import partial
from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ROUND: Final = 0.25  # s between two rounds


async def keep_warm(pools: Collection[Pool], deadline: float) -> None:
    """Tend the pools of one backend, for ever.

    A session that would grow too old is kept alive by the pool's probe, within ``deadline`` seconds.
    """
    async with trio.open_nursery() as nursery:
        while True:
            for pool in pools:
                for session in pool.tend():
                    nursery.start_soon(partial(validate, pool, session, deadline))
            await trio.sleep(_ROUND)


async def watch(backend: Backend, *, balancer: Balancer, metrics: Metrics, log: Log) -> None:
    """Act on state changes of a backend, for ever, and have waiting requests go where they can be served."""
    state = backend.state
    silent: set[str] = set()
    while True:
        await trio.sleep(_ROUND)
        if backend.state != state:
            _turned(backend, state, balancer, metrics, log)
            state = backend.state
        silent = _hasten(backend, balancer, silent)
        _move_waiters(backend, balancer)


def _hasten(backend: Backend, balancer: Balancer, before: set[str]) -> set[str]:
    """Have reads tried elsewhere if their pool has become silent; return the credentials of silent pools."""
    silent = {name for name, pool in backend.pools.items() if pool.is_silent}
    for name in silent - before:
        if balancer.serves_elsewhere(backend, name):
            backend.pools[name].hasten_repeatable()
    return silent


def _move_waiters(backend: Backend, balancer: Balancer) -> None:
    since = trio.current_time() - _ROUND
    for name, pool in backend.pools.items():
        if pool.waits_since(since):
            pool.move_waiters(since, partial(balancer.room_elsewhere, backend, name))


def _turned(backend: Backend, before: str, balancer: Balancer, metrics: Metrics, log: Log) -> None:
    metrics.backend_state_changes.labels(backend.name, backend.state).inc()
    say = log.info if backend.state == "up" else log.warning
    say("key manager turned", backend=backend.name, state=backend.state, before=before)
    if not backend.health.serves:
        backend.turned_down(partial(balancer.serves_elsewhere, backend))


async def validate(pool: Pool, session: Session, deadline: float) -> None:
    """Find out if a lent session is alive, and give it back."""
    try:
        with trio.move_on_after(deadline):
            await session.exchange(pool.probe)
    except BackendError:
        pass  # the session stays BUSY, and is closed
    finally:
        pool.give_back(session)
