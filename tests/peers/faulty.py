"""A gateway with a fault on purpose, to see that a peer's driver notices.

``python -m tests.peers.faulty FAULT run CONFIG``: with ``cut``, each third answer of a key manager lacks its last 16
bytes; with ``mark``, the marks on values stay in requests.
"""

import itertools
import sys
from typing import Any, Final

from gateway.cli import main
from gateway.dispatcher.answer import Answer
from gateway.kmip.ttlv import HEAD, HEADER_SIZE
from gateway.upstream.marks import Marks, Taken

_CUT: Final = 16


def _cut_answers() -> None:
    count = itertools.count(1)
    make = Answer.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Answer], *arguments: Any) -> Answer:
        answer: Answer = make(cls, *arguments)
        if next(count) % 3:
            return answer
        word, length = HEAD.unpack_from(answer.frame)
        rest = answer.frame[HEADER_SIZE:-_CUT]
        return answer._replace(frame=HEAD.pack(word, length - _CUT) + rest)

    Answer.of = classmethod(of)  # type: ignore[assignment]


def _leave_marks() -> None:
    take = Marks.take

    def taken(self: Marks, request: Any, *arguments: Any, **options: Any) -> Taken:
        return take(self, request, *arguments, **options)._replace(request=request)

    Marks.take = taken  # type: ignore[method-assign]


if __name__ == "__main__":
    {"cut": _cut_answers, "mark": _leave_marks}[sys.argv.pop(1)]()
    main(prog_name="kmip-gateway")
