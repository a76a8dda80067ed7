"""Taps: requests as they are answered, for ``kmip-gateway tap``. Without a tap, a request costs one test.

A line has what a line of the audit trail has about a request, and the times of its stages; never a payload. A tap keeps
a bounded number of lines: if its reader is slow, further lines are lost, and counted.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, Self

import trio

from gateway.audit.lines import members, refused_items, request_fields
from gateway.dispatcher import Answer, Dispatcher, Job
from gateway.errors import ControlError
from gateway.front.recorder import RequestRecorder, outcome, result_of
from gateway.identity import Principal
from gateway.kmip.groups import OPERATION_NAMES
from gateway.kmip.messages import Request
from gateway.policy import REASONS, Refusal
from gateway.traffic import Traffic
from gateway.upstream.session import Payer

_MAX_TAPS: Final = 4
_MAX_LINES: Final = 2000  # of one tap, that wait for its reader
_MAX_BYTES: Final = 4 * 1024 * 1024  # of these lines


def _plain(name: str) -> str:
    """Return the name of an operation without spaces and hyphens, in lower case."""
    return "".join(each for each in name if each not in " -_").casefold()


_OPERATIONS: Final = {_plain(name): number for number, name in OPERATION_NAMES.items()}


class TapFilter(NamedTuple):
    """The requests that a tap shows: those that fit every part. An empty part fits every request."""

    traffic: Traffic = Traffic()
    operation: int = 0
    failed: bool = False
    slower_than: float = 0.0  # s

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Read the arguments of a command. Raises ControlError."""
        given = dict(arguments)
        traffic, operation = Traffic.take(given), _operation(given.pop("operation", ""))
        failed, slower_than = given.pop("failed", False), given.pop("slower_than", 0.0)
        if given:
            known = ", ".join((*Traffic._fields, *cls._fields[1:]))
            raise ControlError(f"a tap has no filter {', '.join(sorted(given))}; there are {known}")
        if not isinstance(failed, bool):
            raise ControlError(f"failed is {failed!r}; give true or false")
        if isinstance(slower_than, bool) or not isinstance(slower_than, int | float) or slower_than < 0:
            raise ControlError(f"slower_than is {slower_than!r}; give seconds, 0 or more")
        return cls(traffic, operation, failed, float(slower_than))

    def fits(self, request: "TappedRequest") -> bool:
        """Return True if a request is to be shown."""
        return (
            self.traffic.fits(request.identity, (request.backend, *request.tried), request.client)
            and (not self.operation or self.operation in request.operations)
            and (not self.failed or request.has_failed)
            and request.seconds >= self.slower_than
        )


def _operation(text: object) -> int:
    if not isinstance(text, str):
        raise ControlError(f"operation is {text!r}; give a text")
    number = _OPERATIONS.get(_plain(text), 0)
    if text and not number:
        names = {_plain(name): name for name in OPERATION_NAMES.values()}
        near = [names[each] for each in get_close_matches(_plain(text), names)]
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(OPERATION_NAMES.values())}"
        raise ControlError(f"no operation is named {text!r}; {advice}")
    return number


class TappedRequest:
    """A request that a tap may show. While it is dispatched, it is the dispatcher's observer.

    ``backend`` is the name of the key manager that was tried last, and ``tried`` has the names of all that were; times
    are in seconds: ``queue`` until the request was sent first, ``exchanging`` at key managers, ``seconds`` in all.
    """

    measures = True
    refuses = False

    def __init__(self, listener: str, client: str, principal: Principal | None, request: Request | None) -> None:
        self.listener = listener
        self.client = client
        self.identity = "unidentified" if principal is None else principal.identity.name
        self.request = request
        self.began = trio.current_time()
        self.tries = 0
        self.backend = ""
        self.tried: Sequence[str] = ()
        self.queue = 0.0
        self.exchanging = 0.0
        self.seconds = 0.0
        self.has_failed = True
        self.answer: Answer | None = None
        self.refusal: Refusal | None = None  # of the conversation

    @property
    def operations(self) -> frozenset[int]:
        """The numbers of the operations."""
        return frozenset() if self.request is None else frozenset(item.operation for item in self.request.items)

    async def before_forwarding(self, _job: Job) -> Answer | None:
        """Return None: a tap refuses nothing."""
        return None

    def after_forwarding(self, job: Job) -> None:
        """Take the tries and the times of a request."""
        self.tries = job.tries
        if job.tried:
            self.tried = [backend.name for backend in job.tried]
            self.backend = self.tried[-1]
        times = job.times
        if times is not None and times.exchanges:
            self.queue = max(0.0, min(times.exchanges)[0] - self.began)
            self.exchanging = times.exchanging
        else:
            self.queue = trio.current_time() - self.began

    def end(self, answer: Answer | None) -> None:
        """Take the answer; None if the request was cut off."""
        self.seconds = trio.current_time() - self.began
        self.answer = answer
        if answer is None:
            return
        if answer.backend is not None:
            self.backend = answer.backend.name
        self.has_failed = answer.refusal is not None or (
            answer.response is not None and result_of(answer.response) == "operation_failed"
        )

    def line(self) -> bytes:
        """Return the request as a line of JSON."""
        now = time.time()
        about = members(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
                "listener": self.listener,
                "identity": self.identity,
                "client": self.client,
            }
        )
        times = members(
            {
                "backend": self.backend or None,
                "tries": self.tries,
                "queue": round(self.queue, 6),
                "exchange": round(self.exchanging, 6),
                "seconds": round(self.seconds, 6),
            }
        )
        return f"{{{about},{self._outcome()},{times}}}\n".encode()

    def _outcome(self) -> str:
        request, why = self.request, self.refusal
        if request is None:
            name = Refusal.INVALID_MESSAGE if why is None else why
            return f'"items":[],"result":"gateway_error","refusal":"{name.value}"'
        if why is not None:
            items = refused_items(request, REASONS[why][request.version >= (2, 0)])
            return f'{request_fields(request)},"items":[{items}],"result":"gateway_error","refusal":"{why.value}"'
        items, result = outcome(request, self.answer)
        return f'{request_fields(request)},"items":[{items}],{result}'


class Tap:
    """One reader of live requests. ``lost`` counts the lines that its reader was too slow for."""

    def __init__(self, taps: "Taps", wanted: TapFilter) -> None:
        self._taps = taps
        self._wanted = wanted
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._arrived = trio.Event()

    def __repr__(self) -> str:
        return f"<Tap, {len(self._lines)} lines waiting>"

    def offer(self, request: TappedRequest, line: bytes | None) -> bytes | None:
        """Keep the line of a request, which is made if it is wanted and not made yet. Return it if it was made."""
        if not self._wanted.fits(request):
            return line
        line = line or request.line()
        if len(self._lines) >= _MAX_LINES or self._bytes + len(line) > _MAX_BYTES:
            self._lost += 1
        else:
            self._lines.append(line)
            self._bytes += len(line)
        self._arrived.set()
        return line

    async def receive(self) -> bytes:
        """Wait for lines and return them; before them, a line with the number of those lost, if any."""
        await self._arrived.wait()
        self._arrived = trio.Event()
        lines, lost = b"".join(self._lines), self._lost
        self._lines.clear()
        self._bytes = self._lost = 0
        return lines + (b'{"lost":%d}\n' % lost if lost else b"")

    def close(self) -> None:
        """Take this tap away."""
        self._taps.remove(self)


class Taps:
    """All taps of a gateway. ``is_open`` is True while there are any."""

    def __init__(self) -> None:
        self.is_open = False
        self._taps: list[Tap] = []

    def __repr__(self) -> str:
        return f"<Taps, {len(self._taps)} open>"

    def open(self, wanted: TapFilter) -> Tap:
        """Return a tap, which must be closed. Raises ControlError if there are too many."""
        if len(self._taps) >= _MAX_TAPS:
            raise ControlError(f"{_MAX_TAPS} taps are open already; end one of them")
        tap = Tap(self, wanted)
        self._taps.append(tap)
        self.is_open = True
        return tap

    def remove(self, tap: Tap) -> None:
        """Forget a tap."""
        self._taps = [each for each in self._taps if each is not tap]
        self.is_open = bool(self._taps)

    async def dispatch(
        self,
        dispatcher: Dispatcher | RequestRecorder,
        tapped: TappedRequest,
        request: Request,
        principal: Principal,
        client_disconnected: Callable[[], bool],
        payer: Payer | None,
        *,
        now: float,
    ) -> Answer:
        """Have a request answered, and show it to the taps."""
        answer: Answer | None = None
        try:
            answer = await dispatcher.dispatch(request, principal, client_disconnected, payer, tapped, now=now)
            return answer
        finally:
            tapped.end(answer)
            self._show(tapped)

    def refused(self, tapped: TappedRequest, why: Refusal) -> None:
        """Show a request that was refused before it came to the dispatcher."""
        tapped.refusal = why
        self._show(tapped)

    def _show(self, tapped: TappedRequest) -> None:
        line: bytes | None = None
        for tap in self._taps:
            line = tap.offer(tapped, line)
