"""Spans of the values that only the server that issued them knows: correlation values and tickets.

A request that shows such a value must go to the server that issued it (1.4 sections 4.27 to 4.36, 2.1 sections 6.1.43
and following). A payload that can't be read as items is the vendor's own, and is taken to hold no such value.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Request, RequestItem, Response, ResponseItem
from gateway.kmip.spec import CredentialType, ItemType, Operation, Tag


class ValueKind(Enum):
    """Kind of state that a value names on its server. The strings are part of every mark's proof: never change them."""

    ASYNCHRONOUS = "asynchronous"  # an asynchronous request that is pending
    STREAM = "stream"  # a multi-part cryptographic operation, or a PKCS#11 session
    TICKET = "ticket"  # a login
    DELEGATED = "delegated"  # a login for others


class ValueSpan(NamedTuple):
    """One value: ``start`` and ``end`` are positions in its frame."""

    kind: ValueKind
    start: int
    end: int


#: Operations that ask about an asynchronous request (1.4 sections 4.27, 4.28; 2.1 sections 6.1.39, 6.1.40).
ASKING: Final = frozenset({Operation.POLL, Operation.CANCEL, Operation.PROCESS, Operation.QUERY_ASYNCHRONOUS_REQUESTS})


def presented(request: Request) -> list[ValueSpan]:
    """Return the values that a request shows to the server that issued them, in the order of the frame."""
    values = list(credentials(request))
    for item in request.items:
        values += _readable(_presented_by(item))
    return values


def given(response: Response, request: Request) -> list[ValueSpan]:
    """Return the values that a response to a request gives to its client, in the order of the frame."""
    values = []
    asked = request.items if len(request.items) == len(response.items) else [None] * len(response.items)
    for item, question in zip(response.items, asked, strict=True):
        span = item.fields.get(Tag.ASYNCHRONOUS_CORRELATION_VALUE)
        if span is not None:
            values.append(ValueSpan(ValueKind.ASYNCHRONOUS, *span))
        operation = question.operation if item.operation < 0 and question is not None else item.operation
        values += _readable(_given_by(item, operation))
    return values


def _readable(values: Iterator[ValueSpan]) -> list[ValueSpan]:
    try:
        return list(values)
    except ProtocolError:
        return []


def _presented_by(item: RequestItem) -> Iterator[ValueSpan]:
    frame, payload = item.frame, item.fields.get(Tag.REQUEST_PAYLOAD, _NOWHERE)
    if item.operation in ASKING:
        yield from _asynchronous(frame, payload)
    elif item.operation == Operation.LOGOUT:
        yield from _tickets(ValueKind.TICKET, frame, item.payload_fields())
    else:  # a part of a multi-part operation, or PKCS#11
        yield from _strings(ValueKind.STREAM, item.payload_fields(), Tag.CORRELATION_VALUE)


def _given_by(item: ResponseItem, operation: int) -> Iterator[ValueSpan]:
    """Yield values by their tags alone: the answer to a Poll is that of the operation that the Poll asks about."""
    frame, payload = item.frame, item.fields.get(Tag.RESPONSE_PAYLOAD, _NOWHERE)
    if operation in ASKING:
        yield from _asynchronous(frame, payload)
    fields = item.payload_fields()
    yield from _strings(ValueKind.STREAM, fields, Tag.CORRELATION_VALUE)
    yield from _tickets(
        ValueKind.DELEGATED if operation == Operation.DELEGATED_LOGIN else ValueKind.TICKET, frame, fields
    )


def _asynchronous(frame: bytes, span: tuple[int, int]) -> Iterator[ValueSpan]:
    """Yield the values in a payload itself and, for the lists of Query Asynchronous Requests, one structure deeper."""
    for item in ttlv.walk(frame, *span):
        if item.type == ItemType.STRUCTURE:
            within = ttlv.walk(frame, item.start, item.end, _ASYNCHRONOUS)
            yield from _strings(ValueKind.ASYNCHRONOUS, within, Tag.ASYNCHRONOUS_CORRELATION_VALUE)
        elif _is_string(item, Tag.ASYNCHRONOUS_CORRELATION_VALUE):
            yield ValueSpan(ValueKind.ASYNCHRONOUS, item.start, item.end)


def credentials(request: Request) -> list[ValueSpan]:
    """Return the tickets that authenticate a request: those of the header's Ticket credentials (2.1 section 7.4)."""
    frame, span = request.frame, request.fields.get(Tag.AUTHENTICATION, _NOWHERE)
    tickets: list[ValueSpan] = []
    with suppress(ProtocolError):
        for credential in list(ttlv.walk(frame, *span)):
            if credential.tag == Tag.CREDENTIAL and credential.type == ItemType.STRUCTURE:
                tickets += _readable(_shown_by(frame, credential))
    return tickets


def _shown_by(frame: bytes, credential: ttlv.Item) -> Iterator[ValueSpan]:
    fields = {field.tag: field for field in ttlv.walk(frame, credential.start, credential.end)}
    kind, value = fields.get(Tag.CREDENTIAL_TYPE), fields.get(Tag.CREDENTIAL_VALUE)
    if kind is None or value is None or value.type != ItemType.STRUCTURE:
        return
    if ttlv.read_enumeration(frame, kind) == CredentialType.TICKET:
        yield from _tickets(ValueKind.TICKET, frame, ttlv.walk(frame, value.start, value.end))


def _tickets(kind: ValueKind, frame: bytes, fields: Iterable[ttlv.Item]) -> Iterator[ValueSpan]:
    for item in fields:
        if item.tag == Tag.TICKET and item.type == ItemType.STRUCTURE:
            yield from _strings(kind, ttlv.walk(frame, item.start, item.end), Tag.TICKET_VALUE)


def _strings(kind: ValueKind, fields: Iterable[ttlv.Item], tag: Tag) -> Iterator[ValueSpan]:
    return (ValueSpan(kind, item.start, item.end) for item in fields if _is_string(item, tag))


def _is_string(item: ttlv.Item, tag: Tag) -> bool:
    return item.tag == tag and item.type == ItemType.BYTE_STRING


_ASYNCHRONOUS: Final = frozenset({int(Tag.ASYNCHRONOUS_CORRELATION_VALUE)})
_NOWHERE: Final = (0, 0)
