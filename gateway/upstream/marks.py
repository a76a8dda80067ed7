"""Marks: how a value that one key manager gave finds its way back there, through any gateway that has the same keys.

A mark is put before a correlation value or a ticket on its way to the client, and taken off on its way back. It says
which backend gave the value, and proves that this gateway, or one with its keys, put it there: for this client, before
this value. Nothing is remembered.

    "kgw", format | which backend, 4 bytes | proof, 8 bytes | the key manager's own value
"""

import hmac
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.identity import Principal
from gateway.kmip import ttlv
from gateway.kmip.binding import Bound, Kind, presented
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Tag
from gateway.policy import Refusal

_MAGIC: Final = b"kgw\x01"
_SELECTOR: Final = 4
_PROOF: Final = 8
_CHECKED: Final = 1 << 30  # depth, items and fields were counted when the request came
SIZE: Final = len(_MAGIC) + _SELECTOR + _PROOF  # bytes that a value grows by; a multiple of eight, as padding is

_REFUSALS: Final = {
    Kind.ASYNCHRONOUS: Refusal.UNKNOWN_ASYNCHRONOUS_VALUE,
    Kind.STREAM: Refusal.UNKNOWN_CORRELATION_VALUE,
    Kind.TICKET: Refusal.UNKNOWN_TICKET,
}


class Taken(NamedTuple):
    """A request without the marks that it came with, and the backend that they name, if any; or why it is refused.

    ``is_ticket`` says that nothing but a ticket binds it.
    """

    request: Request
    backend: str = ""
    refusal: Refusal | None = None
    is_ticket: bool = False


class Marks:
    """Puts marks on and takes them off. The first of ``keys`` makes them, each of them is accepted."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Marks by {len(self._keys)} keys>"

    def put(self, response: Response, values: Iterable[Bound], principal: Principal, backend: str) -> bytes:
        """The frame of a backend's response, with a mark before each of the ``values`` that it gives."""
        frame, key = response.frame, self._keys[0]
        marked = {}
        for bound in values:
            value = frame[bound.start : bound.end]
            marked[bound.start] = _mark(key, bound.kind, principal, _selector(key, backend), value) + value
        return ttlv.splice(frame, marked)

    def take(
        self, request: Request, principal: Principal, backends: Collection[str], *, leave_room: bool = False
    ) -> Taken:
        """Take the marks off a request. ``backends`` are the names of all there are.

        A value without a mark stays. A mark that is not of these keys, for this client, is refused, as is a good one of
        a backend that is not there, and as are the marks of two backends in one request. To ``leave_room`` is to lower
        the client's Maximum Response Size by what marks would add to the answer: the key manager refuses what would not
        fit before it does anything.
        """
        bare: dict[int, bytes] = {}
        known: dict[tuple[Kind, bytes], bytes | None] = {}
        selectors: set[bytes] = set()
        kinds: set[Kind] = set()
        for bound in presented(request):
            value = request.frame[bound.start : bound.end]
            if not value.startswith(_MAGIC):
                continue
            if (bound.kind, value) not in known:
                known[bound.kind, value] = self._verified(bound.kind, principal, value)
            selector = known[bound.kind, value]
            if selector is None:
                return Taken(request, refusal=_REFUSALS[bound.kind])
            selectors.add(selector)
            kinds.add(bound.kind)
            bare[bound.start] = value[SIZE:]
        named = {_selector(key, name): name for key in self._keys for name in backends} if selectors else {}
        found = {named.get(selector, "") for selector in selectors}
        if len(found) > 1:
            return Taken(request, refusal=Refusal.SEVERAL_BACKENDS)
        if found == {""}:
            return Taken(request, refusal=Refusal.UNKNOWN_TICKET if kinds == {Kind.TICKET} else Refusal.NO_BACKEND)
        most, room = request.maximum_response_size, SIZE * len(request.items)
        if leave_room and most is not None and most > room:
            bare[request.fields[Tag.MAXIMUM_RESPONSE_SIZE][0]] = (most - room).to_bytes(4, "big")
        if bare:
            frame = ttlv.splice(request.frame, bare)
            request = decode_request(frame, max_depth=_CHECKED, max_items=_CHECKED, max_fields=_CHECKED)
        return Taken(request, next(iter(found), ""), is_ticket=kinds == {Kind.TICKET})

    def _verified(self, kind: Kind, principal: Principal, value: bytes) -> bytes | None:
        """What stands for the backend in a marked value; None where the mark is not good."""
        mark, value = value[:SIZE], value[SIZE:]
        selector = mark[len(_MAGIC) : len(_MAGIC) + _SELECTOR]
        kinds = (Kind.TICKET, Kind.DELEGATED) if kind is Kind.TICKET else (kind,)
        for key in self._keys:
            if any(hmac.compare_digest(mark, _mark(key, one, principal, selector, value)) for one in kinds):
                return selector
        return None


def _mark(key: bytes, kind: Kind, principal: Principal, selector: bytes, value: bytes) -> bytes:
    # A ticket for others may be shown by others, under the same identity: that is what it is for.
    client = () if kind is Kind.DELEGATED else (principal.issuer, principal.subject)
    named = "\0".join((kind.value, principal.identity.name, *client)).encode()
    proof = hmac.digest(key, len(named).to_bytes(4, "big") + named + selector + value, "sha256")[:_PROOF]
    return _MAGIC + selector + proof


@lru_cache(maxsize=4096)
def _selector(key: bytes, backend: str) -> bytes:
    return hmac.digest(key, b"backend\0" + backend.encode(), "sha256")[:_SELECTOR]
