"""The keeper: goes round a backend's pools, keeps them warm, and acts when the backend turns up or down."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ROUND: Final = 0.25  # s between two rounds


async def keep_warm(pools: Collection[Pool], deadline: float) -> None:
    """Tend the pools of one backend, for ever.

    A session that would grow too old stays alive by an exchange of the pool's probe, within ``deadline`` seconds.
    """
    async with trio.open_nursery() as nursery:
        while True:
            for pool in pools:
                for session in pool.tend():
                    nursery.start_soon(partial(_stay_alive, pool, session, deadline))
            await trio.sleep(_ROUND)


async def watch(backend: Backend, *, others_serve: Callable[[str], bool], metrics: Metrics, log: Log) -> None:
    """Act on what becomes of a backend, for ever.

    ``others_serve`` tells whether another backend is available to a credential, and could serve what waits here.
    """
    state = backend.state
    silent: set[str] = set()
    while True:
        await trio.sleep(_ROUND)
        backend.judge()
        if backend.state != state:
            _turned(backend, state, others_serve, metrics, log)
            state = backend.state
        fell_silent = {name for name, pool in backend.pools.items() if pool.is_silent}
        for name in fell_silent - silent:
            if others_serve(name):
                backend.pools[name].interrupt_repeatable()
        silent = fell_silent


def _turned(backend: Backend, before: str, others_serve: Callable[[str], bool], metrics: Metrics, log: Log) -> None:
    metrics.backend_state_changes.labels(backend.name, backend.state).inc()
    said = {"backend": backend.name, "state": backend.state, "before": before}
    if backend.serves:
        log.info("key manager turned", **said)
    else:
        log.warning("key manager turned", **said, **_why(backend))
        backend.let_go(others_serve)


def _why(backend: Backend) -> dict[str, str]:
    """Return the reason, a short word, and the detail, a sentence, for which a backend does not serve."""
    if not backend.health.serves:
        return {"reason": backend.health.reason, "detail": backend.health.detail}
    failing = sorted(name for name, pool in backend.pools.items() if pool.is_failing)
    return {"reason": "sessions", "detail": f"sessions of several identities fail: {', '.join(failing)}"}


async def _stay_alive(pool: Pool, session: Session, deadline: float) -> None:
    try:
        with trio.move_on_after(deadline):
            await session.exchange(pool.probe)
    except BackendError:
        pass  # the session stays BUSY, and is thrown away
    finally:
        pool.give_back(session)
