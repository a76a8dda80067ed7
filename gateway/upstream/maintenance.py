"""The keeper: goes round a backend's pools, keeps them warm, and acts when the backend turns up or down."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import trio

from gateway.errors import BackendError
from gateway.log import Log, Throttle, get
from gateway.metrics import Metrics
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ROUND: Final = 0.25  # s between two rounds
_REPEAT: Final = 60.0  # s until a fault that goes on is logged again


async def maintain_pools(
    pools: Collection[Pool], deadline: float, *, idle_limit: IdleLimit | None = None, log: Log | None = None
) -> None:
    """Tend the pools of one backend, for ever, and forget the idle limit that they learned together long ago.

    A session that would grow too old is kept alive by the pool's probe, within ``deadline`` seconds. A fault of ours in
    one pool's round is logged, and ends neither the rounds nor the gateway.
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
                    for session in pool.maintain():
                        nursery.start_soon(partial(_keep_alive, pool, session, deadline, say))
                except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
                    say(pool.credential, "pool not tended: a fault of the gateway", pool=repr(pool), exc_info=error)
            await trio.sleep(_ROUND)


async def _keep_alive(pool: Pool, session: Session, deadline: float, say: Callable[..., None]) -> None:
    try:
        await validate(pool, session, deadline)
    except Exception as error:  # noqa: BLE001 - as above
        say(
            f"{pool.credential} alive",
            "session not kept alive: a fault of the gateway",
            pool=repr(pool),
            exc_info=error,
        )


async def validate(pool: Pool, session: Session, deadline: float) -> None:
    """Find out within so many seconds if a lent session is alive, and give it back.

    After an error the session stays BUSY, and is closed.
    """
    session.is_repeatable = False
    try:
        with trio.move_on_after(deadline):
            await session.exchange(pool.validation_request)
    except BackendError:
        pass
    finally:
        pool.give_back(session)


async def watch(backend: Backend, *, balancer: Balancer, metrics: Metrics, log: Log) -> None:
    """Act on state changes of a backend, for ever, and have waiting requests go where they can be served."""
    state = backend.state
    silent: set[str] = set()
    throttle = Throttle(_REPEAT)
    while True:
        await trio.sleep(_ROUND)
        try:
            before, state = state, backend.state
            if state != before:
                _turned(backend, before, balancer, metrics, log)
            silent = _hasten(backend, balancer, silent)
            _move_waiters(backend, balancer)
        except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
            throttle.error(
                log, backend.name, "backend not watched: a fault of the gateway", backend=backend.name, exc_info=error
            )


def _hasten(backend: Backend, balancer: Balancer, before: set[str]) -> set[str]:
    """Have reads tried elsewhere if their pool has become silent; return the credentials of silent pools."""
    silent = {name for name, pool in backend.pools.items() if pool.is_silent}
    for name in silent - before:
        if balancer.serves_elsewhere(backend, name):
            backend.pools[name].hedge_repeatable()
    return silent


def _move_waiters(backend: Backend, balancer: Balancer) -> None:
    since = trio.current_time() - _ROUND
    for name, pool in backend.pools.items():
        if pool.waiters.have_waited_since(since):
            pool.waiters.move(since, partial(balancer.room_elsewhere, backend, name))


def _turned(backend: Backend, before: str, balancer: Balancer, metrics: Metrics, log: Log) -> None:
    metrics.backend_state_changes.labels(backend.name, backend.state).inc()
    said = {"backend": backend.name, "state": backend.state, "before": before}
    if backend.state == "up":
        log.info("key manager turned", **said)
    else:
        log.warning("key manager turned", **said, **_why(backend))
    if not backend.health.serves:
        backend.on_down(partial(balancer.serves_elsewhere, backend))


def _why(backend: Backend) -> dict[str, str]:
    """Return the reason, a short word, and the detail, a sentence, for which a backend does not serve, or not all."""
    if not backend.health.serves:
        return {"reason": backend.health.reason, "detail": backend.health.detail}
    return {"reason": "exchanges", "detail": backend.breaker.describe(trio.current_time())}
