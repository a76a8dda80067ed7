"""The prober: goes round the pools now and then, and keeps them warm."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from gateway.errors import BackendError
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.upstream.pool import Pool
from gateway.upstream.session import Session

_ROUND: Final = 0.25  # s between two rounds


async def keep_warm(pools: Sequence[Pool], probe: bytes, deadline: float) -> None:
    """Tend the pools of one backend, for ever.

    ``probe`` is the cheap request that an idle session answers to stay alive, within ``deadline`` seconds.
    """
    request = decode_request(probe)
    async with trio.open_nursery() as nursery:
        while True:
            for pool in pools:
                for session in pool.tend():
                    nursery.start_soon(partial(_stay_alive, pool, session, request, deadline))
            await trio.sleep(_ROUND)


async def _stay_alive(pool: Pool, session: Session, request: Request, deadline: float) -> None:
    try:
        with trio.move_on_after(deadline):
            await session.exchange(request)
    except BackendError:
        pass  # the session stays BUSY, and is thrown away
    finally:
        pool.give_back(session)
