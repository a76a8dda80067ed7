"""Maintenance: the tasks of each backend beside the requests.

``maintain_pools`` closes old sessions, opens missing ones and validates warm ones. ``watch`` acts on changes of the
backend's state, and moves waiting requests to backends with a free session.
"""

import time
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
    """Maintain the pools of a backend four times a second, for ever.

    A warm session that would grow too old is validated, within ``deadline`` seconds, which resets its age. A learned
    idle limit is dropped after an hour. An internal error in one pool's round is logged, and ends neither the
    rounds nor the gateway.
    """
    log = log or get("upstream")
    log_error = partial(Throttle(_REPEAT).error, log)
    async with trio.open_nursery() as nursery:
        while True:
            if idle_limit is not None and idle_limit.forget(trio.current_time()):
                log.info(
                    "learned idle limit dropped after an hour: pool.idle_timeout applies again",
                    idle_timeout=idle_limit.configured,
                )
            for pool in pools:
                if pool.is_dormant:
                    continue
                try:
                    for session in pool.maintain():
                        nursery.start_soon(partial(_validate_warm, pool, session, deadline, log_error))
                except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
                    log_error(
                        pool.credential,
                        "internal error: pool not maintained; report this bug",
                        pool=repr(pool),
                        exc_info=error,
                    )
            await trio.sleep(_ROUND)


async def _validate_warm(pool: Pool, session: Session, deadline: float, log_error: Callable[..., object]) -> None:
    try:
        await validate(pool, session, deadline)
    except Exception as error:  # noqa: BLE001 - as above
        log_error(
            f"{pool.credential} validation",
            "internal error: session not validated; report this bug",
            pool=repr(pool),
            exc_info=error,
        )


async def validate(pool: Pool, session: Session, deadline: float) -> None:
    """Validate a lent session with a cheap request, within ``deadline`` seconds, and give it back.

    After an error or a timeout the session is BUSY, so that the pool closes it.
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
    """Act on state changes of a backend four times a second, for ever: log, count, and move requests elsewhere."""
    state = backend.state
    silent: set[str] = set()
    throttle = Throttle(_REPEAT)
    for to in ("up", "down"):
        metrics.backend_state_changes.labels(backend.name, to)  # 0 at first, so that Prometheus sees the first change
    while True:
        await trio.sleep(_ROUND)
        try:
            before, state = state, backend.state
            if error := backend.error:
                backend.last_error = error, time.time()
            if state != before:
                _state_changed(backend, before, balancer, metrics, log)
            silent = _hedge_if_silent(backend, balancer, silent)
            _move_waiters(backend, balancer)
        except Exception as error:  # noqa: BLE001 - else it would end the whole gateway
            throttle.error(
                log,
                backend.name,
                "internal error: backend not watched; report this bug",
                backend=backend.name,
                exc_info=error,
            )


def _hedge_if_silent(backend: Backend, balancer: Balancer, before: set[str]) -> set[str]:
    """Hedge the reads of each pool that has become silent since ``before``; return the credentials of silent pools."""
    silent = {name for name, pool in backend.pools.items() if pool.is_silent}
    for name in silent - before:
        if balancer.serves_elsewhere(backend, name):
            backend.pools[name].hedge_repeatable()
    return silent


def _move_waiters(backend: Backend, balancer: Balancer) -> None:
    """Move requests that have waited for a whole round to backends with a free session."""
    since = trio.current_time() - _ROUND
    for name, pool in backend.pools.items():
        if pool.waiters.have_waited_since(since):
            pool.waiters.move(since, partial(balancer.room_elsewhere, backend, name))


def _state_changed(backend: Backend, before: str, balancer: Balancer, metrics: Metrics, log: Log) -> None:
    metrics.backend_state_changes.labels(backend.name, backend.state).inc()
    backend.since = time.time()
    fields = {"backend": backend.name, "state": backend.state, "before": before}
    if backend.state == "up":
        log.info("backend state changed", **fields)
    else:
        log.warning("backend state changed", **fields, **_why(backend))
    if not backend.health.serves:
        backend.on_down(partial(balancer.serves_elsewhere, backend))


def _why(backend: Backend) -> dict[str, str]:
    """Return the reason (a short word) and the detail (a sentence) for a state other than up."""
    if backend.is_drained:
        return {"reason": "operator", "detail": "drained over the control socket; kmip-gateway enable ends this"}
    if not backend.health.serves:
        return {"reason": backend.health.reason, "detail": backend.health.detail}
    return {"reason": "exchanges", "detail": backend.breaker.describe(trio.current_time())}
