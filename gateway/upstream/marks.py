"""Marks lead a correlation value or ticket back to the key manager that issued the value, through any gateway.

The gateway puts a mark before such a value on its way to the client, and takes the mark off when the client shows the
value. The mark names the backend, and proves that a gateway with the same keys put the mark before this value, for this
client. Nothing is remembered, so that a mark survives a restart and works at every gateway with the same keys.

    "kgw", format 1 | backend, 4 bytes | proof, 8 bytes | the key manager's own value

See "The purpose of marks" in gateway/dispatcher/replication.py.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.identity import Principal
from gateway.kmip import ttlv
from gateway.kmip.binding import ValueKind, ValueSpan, presented
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.policy import Refusal

_MAGIC: Final = b"kgw\x01"
_SELECTOR: Final = 4  # bytes that name the backend
_PROOF: Final = 8
_CHECKED: Final = 1 << 30  # depth, items and fields were counted when the request came
SIZE: Final = len(_MAGIC) + _SELECTOR + _PROOF  # bytes that a value grows by; a multiple of eight, as padding is

_REFUSALS: Final = {
    ValueKind.ASYNCHRONOUS: Refusal.UNKNOWN_ASYNCHRONOUS_VALUE,
    ValueKind.STREAM: Refusal.UNKNOWN_CORRELATION_VALUE,
    ValueKind.TICKET: Refusal.UNKNOWN_TICKET,
}


class Taken(NamedTuple):
    """A request without its marks, and the backend that the marks name, if any; or ``refusal``: why it is refused.

    ``is_ticket`` is True if all marks stood before tickets.
    """

    request: Request
    backend: str = ""
    refusal: Refusal | None = None
    is_ticket: bool = False


class Marks:
    """Puts marks on values and takes them off. The first of ``keys`` makes marks, all keys are accepted."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Marks by {len(self._keys)} keys>"

    def put(self, response: Response, values: Iterable[ValueSpan], principal: Principal, backend: str) -> bytes:
        """Return the frame of a backend's response, with a mark before each of ``values``."""
        frame, key = response.frame, self._keys[0]
        marked = {}
        for span in values:
            value = frame[span.start : span.end]
            marked[span.start] = _mark(key, span.kind, principal, _selector(key, backend), value) + value
        return ttlv.splice(frame, marked)

    def take(
        self, request: Request, principal: Principal, backends: Collection[str], *, leave_room: bool = False
    ) -> Taken:
        """Take the marks off a request. ``backends`` are the names of all backends, as in marks.

        Refused: a mark with an invalid proof, a mark of an unknown backend, and marks of two backends in one request. A
        value without a mark passes unchanged. ``leave_room`` lowers the client's Maximum Response Size by the size of
        the marks that the answer may need, so that the key manager refuses an answer that would not fit, before it does
        anything.
        """
        frame = request.frame
        spans = [span for span in presented(request) if frame.startswith(_MAGIC, span.start, span.end)]
        selectors: dict[tuple[ValueKind, bytes], bytes] = {}  # a value that occurs several times is verified once
        for span in spans:
            value = frame[span.start : span.end]
            if (span.kind, value) not in selectors:
                selector = self._verify(span.kind, principal, value)
                if selector is None:
                    return Taken(request, refusal=_REFUSALS[span.kind])
                selectors[span.kind, value] = selector
        is_ticket = bool(spans) and all(span.kind is ValueKind.TICKET for span in spans)
        named = self._names_of(selectors, backends)
        if len(named) > 1:
            return Taken(request, refusal=Refusal.SEVERAL_BACKENDS)
        if named == {""}:
            return Taken(request, refusal=Refusal.UNKNOWN_TICKET if is_ticket else Refusal.NO_BACKEND)
        changes = {span.start: frame[span.start + SIZE : span.end] for span in spans}
        if leave_room:
            changes |= _lower_maximum_response_size(request)
        return Taken(_with_changes(request, changes), next(iter(named), ""), is_ticket=is_ticket)

    def _names_of(self, selectors: Mapping[tuple[ValueKind, bytes], bytes], backends: Collection[str]) -> set[str]:
        """Return the backends that selectors stand for; "" for an unknown backend."""
        if not selectors:
            return set()
        names = {_selector(key, name): name for key in self._keys for name in backends}
        return {names.get(selector, "") for selector in selectors.values()}

    def _verify(self, kind: ValueKind, principal: Principal, value: bytes) -> bytes | None:
        """Return the selector, which stands for the backend, in a marked value; None if the proof is invalid."""
        mark, value = value[:SIZE], value[SIZE:]
        selector = mark[len(_MAGIC) : len(_MAGIC) + _SELECTOR]
        kinds = (ValueKind.TICKET, ValueKind.DELEGATED) if kind is ValueKind.TICKET else (kind,)
        for key in self._keys:
            if any(hmac.compare_digest(mark, _mark(key, issued_as, principal, selector, value)) for issued_as in kinds):
                return selector
        return None


def _lower_maximum_response_size(request: Request) -> dict[int, bytes]:
    """Return the client's Maximum Response Size less a mark for each item, by its position; nothing if that is 0."""
    most, room = request.maximum_response_size, SIZE * len(request.items)
    if most is None or most <= room:
        return {}
    return {request.fields[Tag.MAXIMUM_RESPONSE_SIZE][0]: (most - room).to_bytes(4, "big")}


def _with_changes(request: Request, changes: Mapping[int, bytes]) -> Request:
    if not changes:
        return request
    frame = ttlv.splice(request.frame, changes)
    return decode_request(frame, max_depth=_CHECKED, max_items=_CHECKED, max_fields=_CHECKED)


def _mark(key: bytes, kind: ValueKind, principal: Principal, selector: bytes, value: bytes) -> bytes:
    # The ticket of a Delegated Login may be shown by any client of the same identity: its proof names no client.
    client: tuple[str, ...] = () if kind is ValueKind.DELEGATED else (principal.issuer, principal.subject)
    if client and principal.names is not None:  # two clients may have one subject and other alternative names
        client = (*client, principal.names.credential)
    named = "\0".join((kind.value, principal.identity.name, *client)).encode()
    proof = hmac.digest(key, len(named).to_bytes(4, "big") + named + selector + value, "sha256")[:_PROOF]
    return _MAGIC + selector + proof


@lru_cache(maxsize=4096)
def _selector(key: bytes, backend: str) -> bytes:
    return hmac.digest(key, b"backend\0" + backend.encode(), "sha256")[:_SELECTOR]
