"""Faults for a gateway, to see that a peer's driver notices them.

With ``cut``, each third answer of a key manager lacks its last 16 bytes; with ``another``, a Get is answered as the Get
before it was to be; with ``mark``, the marks on values stay in requests.
"""

import itertools
from typing import Any, Final

from gateway.dispatcher.answer import Answer
from gateway.dispatcher.dispatcher import Dispatcher
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation
from gateway.kmip.ttlv import HEAD, HEADER_SIZE
from gateway.upstream.marks import Marks, Taken

_CUT: Final = 16


def _cut_answers() -> None:
    count = itertools.count(1)
    dispatch = Dispatcher.dispatch

    async def dispatched(self: Dispatcher, *arguments: Any, **options: Any) -> Answer:
        answer = await dispatch(self, *arguments, **options)
        if answer.response is None or next(count) % 3:
            return answer
        word, length = HEAD.unpack_from(answer.frame)
        rest = answer.frame[HEADER_SIZE:-_CUT]
        return answer._replace(frame=HEAD.pack(word, length - _CUT) + rest)

    Dispatcher.dispatch = dispatched  # type: ignore[method-assign]


def _swap_answers() -> None:
    before: list[bytes] = []
    dispatch = Dispatcher.dispatch

    async def dispatched(self: Dispatcher, request: Request, *arguments: Any, **options: Any) -> Answer:
        answer = await dispatch(self, request, *arguments, **options)
        if answer.response is None or request.items[0].operation != Operation.GET:
            return answer
        before.append(answer.frame)
        return answer._replace(frame=before[0] if len(before) == 1 else before.pop(0))

    Dispatcher.dispatch = dispatched  # type: ignore[method-assign]


def _leave_marks() -> None:
    take = Marks.take

    def taken(self: Marks, request: Any, *arguments: Any, **options: Any) -> Taken:
        return take(self, request, *arguments, **options)._replace(request=request)

    Marks.take = taken  # type: ignore[method-assign]


_FAULTS: Final = {"cut": _cut_answers, "another": _swap_answers, "mark": _leave_marks}


def spoil(fault: str) -> None:
    """Give the gateway of this process a fault."""
    _FAULTS[fault]()
