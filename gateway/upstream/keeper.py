"""The keeper: goes round a backend's pools, keeps them warm, and acts when the backend turns up or down."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log, Throttle, get
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ROUND: Final = 0.25  # s between two rounds
_REPEAT: Final = 60.0  # s until a fault that goes on is logged again


async def keep_warm(
    pools: Collection[Pool], deadline: float, *, idle_limit: IdleLimit | None = None, log: Log | None = None
) -> None:
    """Tend the pools of one backend, for ever, and forget the idle limit that they learned together long ago.

    A session that would grow too old stays alive by an exchange of the pool's probe, within ``deadline`` seconds. A
    fault of ours in one pool's round is logged, and ends neither the rounds nor the gateway.
    """
    log = log or get("upstream")
    say = partial(Throttle(_REPEAT).error, log)
    async with trio.open_nursery() as nursery:
        while True:
            if idle_limit is not None and idle_limit.forget(trio.current_time()):
                log.info(
                    "learned idle limit forgotten: pool.idle_timeout holds again", idle_timeout=idle_limit.configured
                )
            for pool in pools:
                try:
                    for session in pool.tend():
                        nursery.start_soon(partial(_stay_alive, pool, session, deadline, say))
                except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
                    say(pool.credential, "pool not tended: a fault of the gateway", pool=repr(pool), exc_info=error)
            await trio.sleep(_ROUND)


async def watch(backend: Backend, *, others_serve: Callable[[str], bool], metrics: Metrics, log: Log) -> None:
    """Act on what becomes of a backend, for ever.

    ``others_serve`` tells whether another backend is available to a credential, and could serve what waits here.
    """
    state = backend.state
    silent: set[str] = set()
    throttle = Throttle(_REPEAT)
    while True:
        await trio.sleep(_ROUND)
        try:
            backend.judge()
            before, state = state, backend.state
            if state != before:
                _turned(backend, before, others_serve, metrics, log)
            before_silent, silent = silent, {name for name, pool in backend.pools.items() if pool.is_silent}
            for name in silent - before_silent:
                if others_serve(name):
                    backend.pools[name].interrupt_repeatable()
        except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
            throttle.error(
                log, backend.name, "backend not watched: a fault of the gateway", backend=backend.name, exc_info=error
            )


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


async def _stay_alive(pool: Pool, session: Session, deadline: float, say: Callable[..., None]) -> None:
    """Exchange the pool's probe; after any error the session stays BUSY, and is thrown away."""
    try:
        try:
            with trio.move_on_after(deadline):
                await session.exchange(pool.probe)
        except BackendError:
            pass
        finally:
            pool.give_back(session)
    except Exception as error:  # noqa: BLE001 - as above
        say(
            f"{pool.credential} alive",
            "session not kept alive: a fault of the gateway",
            pool=repr(pool),
            exc_info=error,
        )
