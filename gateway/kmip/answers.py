"""Decide if a response answers a request: by operation, Unique Batch Item ID and Unique Identifier.

A key manager that sends an answer twice, late, or to the wrong connection shifts all answers of that connection by one:
the client would get the key of a wrong object as success. The fields of the response are compared with the request;
nothing but the two messages is needed.

Some servers echo less than the specification demands. An operation, a Unique Batch Item ID or a Unique Identifier that
the response does not have contradicts nothing.
"""

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import UNIQUE_IDENTIFIERS, Request, RequestItem, Response, ResponseItem
from gateway.kmip.spec import ItemType, Operation, ResultStatus, Tag

#: Operations whose response repeats the Unique Identifier of the object that the request names. Sections of 1.4.
REPEATING: Final = frozenset(
    {
        Operation.CHECK,  # 4.10
        Operation.GET,  # 4.11
        Operation.GET_ATTRIBUTES,  # 4.12
        Operation.GET_ATTRIBUTE_LIST,  # 4.13
        Operation.ADD_ATTRIBUTE,  # 4.14
        Operation.MODIFY_ATTRIBUTE,  # 4.15
        Operation.DELETE_ATTRIBUTE,  # 4.16
        Operation.OBTAIN_LEASE,  # 4.17
        Operation.GET_USAGE_ALLOCATION,  # 4.18
        Operation.ACTIVATE,  # 4.19
        Operation.REVOKE,  # 4.20
        Operation.DESTROY,  # 4.21
        Operation.ARCHIVE,  # 4.22
        Operation.RECOVER,  # 4.23
        Operation.ENCRYPT,  # 4.29
        Operation.DECRYPT,  # 4.30
        Operation.SIGN,  # 4.31
        Operation.SIGNATURE_VERIFY,  # 4.32
        Operation.MAC,  # 4.33
        Operation.MAC_VERIFY,  # 4.34
        Operation.EXPORT,  # 4.40
        Operation.ADJUST_ATTRIBUTE,  # since 2.0
        Operation.SET_ATTRIBUTE,  # since 2.0
        Operation.OBLITERATE,  # since 3.0
        Operation.DEACTIVATE,  # since 3.0
    }
)

#: Operations that make a new object: the response gives an identifier that was never given before. Sections of 1.4.
#: Register, Import, Certify and Re-key are not listed, since the same answer twice may be right: the client may choose
#: the identifier, some servers give the same certificate the same identifier, and some (Cosmian) renew keys and
#: certificates in place.
MAKING: Final = frozenset(
    {
        Operation.CREATE,  # 4.1
        Operation.CREATE_KEY_PAIR,  # 4.2
        Operation.DERIVE_KEY,  # 4.6
        Operation.CREATE_SPLIT_KEY,  # 4.38
        Operation.JOIN_SPLIT_KEY,  # 4.39
    }
)

#: Operations that set the ID Placeholder, and the tag of the identifier that it is set to (1.4 section 4). Locate sets
#: the ID Placeholder only if it found exactly one object. Operations in REPEATING leave the ID Placeholder as it is.
#: After any other operation, and after a failure of an operation in this table, its value is not known here.
PLACEHOLDER: Final[dict[int, Tag]] = {
    Operation.CREATE: Tag.UNIQUE_IDENTIFIER,
    Operation.CREATE_KEY_PAIR: Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER,
    Operation.REGISTER: Tag.UNIQUE_IDENTIFIER,
    Operation.REKEY: Tag.UNIQUE_IDENTIFIER,
    Operation.REKEY_KEY_PAIR: Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER,
    Operation.DERIVE_KEY: Tag.UNIQUE_IDENTIFIER,
    Operation.CERTIFY: Tag.UNIQUE_IDENTIFIER,
    Operation.RECERTIFY: Tag.UNIQUE_IDENTIFIER,
    Operation.LOCATE: Tag.UNIQUE_IDENTIFIER,
    Operation.JOIN_SPLIT_KEY: Tag.UNIQUE_IDENTIFIER,
}

# Access to an enum member is slow, and these are needed in every message.
_REQUEST_PAYLOAD: Final = int(Tag.REQUEST_PAYLOAD)
_RESPONSE_PAYLOAD: Final = int(Tag.RESPONSE_PAYLOAD)
_UNIQUE_IDENTIFIER: Final = int(Tag.UNIQUE_IDENTIFIER)
_UNIQUE_BATCH_ITEM_ID: Final = int(Tag.UNIQUE_BATCH_ITEM_ID)
_POLL: Final = int(Operation.POLL)
_NONE: Final = -1  # the operation of an item that has none

_SIZE: Final = ttlv.HEADER_SIZE
_unpack_head = ttlv.HEAD.unpack_from
_TEXT_WORD: Final = ttlv.word(Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING)
_OBJECT_TYPE_HEAD: Final = ttlv.HEAD.pack(ttlv.word(Tag.OBJECT_TYPE, ItemType.ENUMERATION), 4)
_OBJECT_TYPE_SIZE: Final = 2 * _SIZE
_ID_PLACEHOLDER: Final = (1).to_bytes(4, "big")  # of Unique Identifier Enumeration, 2.1 section 11.61

_UUID: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEXTS: Final = frozenset({ItemType.TEXT_STRING, ItemType.IDENTIFIER})
_LATEST: Final = 32  # new objects that are remembered per session: an answer sent twice comes soon


def is_answer_to(response: Response, request: Request) -> bool:
    """Return True if nothing in a response contradicts that it answers this request."""
    try:  # fast path: one item, and both payloads begin alike; in the response, Object Type may come first
        (item,), (question,) = response.items, request.items
        fields = item.fields
        if item.operation == question.operation and (
            _UNIQUE_BATCH_ITEM_ID not in fields or item.unique_batch_item_id == question.unique_batch_item_id
        ):
            start, end = question.fields[_REQUEST_PAYLOAD]
            named, frame, position = question.frame[start:end], item.frame, fields[_RESPONSE_PAYLOAD][0]
            if frame.startswith(_OBJECT_TYPE_HEAD, position):
                position += _OBJECT_TYPE_SIZE
            if frame.startswith(named, position):
                return True
    except (ValueError, KeyError):  # several items, or no payload
        pass
    answered, asked = response.items, request.items
    if len(answered) == len(asked) == 1:
        item, question = answered[0], asked[0]
        return _echoes(item, question) and (
            question.operation not in REPEATING
            or _repeats_first(item, question)
            or _repeats(item, question, None, _NamedBefore())
        )
    pairs = _pair(answered, asked)
    return pairs is not None and _repeats_all(pairs, asked)


def paired(response: Response, request: Request) -> dict[int, ResponseItem] | None:
    """Return the items of a response by the position of their item in the request; None if one belongs to no item."""
    return _pair(response.items, request.items)


# Operation and Unique Batch Item ID ---------------------------------------------------------------------------------


def _echoes(item: ResponseItem, question: RequestItem) -> bool:
    number = item.unique_batch_item_id
    return _echoes_operation(item, question) and (number is None or number == question.unique_batch_item_id)


def _echoes_operation(item: ResponseItem, question: RequestItem) -> bool:
    """Return True if the operation is echoed.

    A Poll is answered like the operation that it asks about (1.4 section 4.28), so any operation may come.
    """
    operation, asked = item.operation, question.operation
    return operation == asked or operation == _NONE or asked == _POLL  # noqa: PLR1714 - a tuple for each message


def _pair(answered: Sequence[ResponseItem], asked: Sequence[RequestItem]) -> dict[int, ResponseItem] | None:
    """Return the answers by the position of their item in the request; None if an answer belongs to no item.

    Answers with a Unique Batch Item ID may come in any order (1.4 section 6.4). Answers without it come in the order of
    the request: clients can't tell them apart either. After a failure the rest may be missing (1.4 section 6.13).
    """
    if len(answered) == len(asked) and all(map(_echoes, answered, asked)):
        return dict(enumerate(answered))  # the usual case: all answers, in order
    numbered: dict[bytes | None, deque[int]] = {}
    for position, question in enumerate(asked):
        numbered.setdefault(question.unique_batch_item_id, deque()).append(position)
    pairs: dict[int, ResponseItem] = {}
    after = 0
    for item in answered:
        number = item.unique_batch_item_id
        if number is not None:
            left = numbered.get(number)
            position = left.popleft() if left else len(asked)
        else:
            position = after
            while position < len(asked) and not _echoes_operation(item, asked[position]):
                position += 1
            after = position + 1
        if position in pairs or position >= len(asked) or not _echoes_operation(item, asked[position]):
            return None
        pairs[position] = item
    return pairs


# Unique Identifier --------------------------------------------------------------------------------------------------


def _repeats_first(item: ResponseItem, question: RequestItem) -> bool:
    """Return True if both payloads begin with the same Unique Identifier; in the response, Object Type may precede it.

    A fast path for nearly all answers: bytes are compared, and nothing is decoded. False proves nothing.
    """
    span, answered = question.fields.get(_REQUEST_PAYLOAD), item.fields.get(_RESPONSE_PAYLOAD)
    if span is None or answered is None or span[1] - span[0] < _SIZE:
        return False
    frame, start = question.frame, span[0]
    word, length = _unpack_head(frame, start)
    end = start + _SIZE + length
    if word != _TEXT_WORD or not length or end > span[1]:
        return False
    response, position = item.frame, answered[0]
    if response.startswith(_OBJECT_TYPE_HEAD, position):
        position += _OBJECT_TYPE_SIZE
    return response.startswith(frame[start:end], position, answered[1])


class _NamedBefore:
    """The identifiers in the earlier answers of a batch. The answers are read only if a request item refers to one."""

    __slots__ = ("_identifiers", "_unread")

    def __init__(self) -> None:
        self._unread: list[ResponseItem] = []
        self._identifiers: set[bytes] = set()

    def add(self, item: ResponseItem) -> None:
        """Add the identifiers in an answer."""
        self._unread.append(item)

    def identifiers(self) -> set[bytes]:
        """Return all identifiers so far. Each answer is read at most once, so that the time stays linear."""
        while self._unread:
            self._identifiers |= _identifiers(self._unread.pop()) or set()
        return self._identifiers


def _repeats(item: ResponseItem, question: RequestItem, placeholder: bytes | None, named: _NamedBefore) -> bool:
    """Return True if the response names no object that the request does not name.

    ``placeholder`` is the ID Placeholder, if it is known.
    """
    answered = _identifiers(item)
    if answered is None:
        return False
    if not answered:
        return True
    names = _names_in(question, placeholder, named)
    return names is None or answered <= names or _ignoring_case(answered) <= _ignoring_case(names)


def _repeats_all(pairs: dict[int, ResponseItem], asked: Sequence[RequestItem]) -> bool:
    """Return True if each answer of a batch names only objects that its item names, or that of the ID Placeholder."""
    placeholder: bytes | None = None
    named = _NamedBefore()
    for position, question in enumerate(asked):
        item, operation = pairs.get(position), question.operation
        if operation not in REPEATING:
            placeholder = None if item is None else _placeholder_after(item, operation)
        elif item is not None and not (_repeats_first(item, question) or _repeats(item, question, placeholder, named)):
            return False
        if item is not None:
            named.add(item)
    return True


def _placeholder_after(item: ResponseItem, operation: int) -> bytes | None:
    """Return the ID Placeholder after an operation that repeats no identifier; None if that can't be known."""
    tag = PLACEHOLDER.get(operation)
    if tag is None or item.status != ResultStatus.SUCCESS:
        return None
    given = _identifiers(item, frozenset({tag})) or ()
    return next(iter(given)) if len(given) == 1 else None


def _names_in(question: RequestItem, placeholder: bytes | None, named: _NamedBefore) -> set[bytes] | None:
    """Return the identifiers that the answer may have; None if any identifier may come.

    Since 2.0 a number or an enumeration can refer to an item of the batch (2.1 section 11.61). Cosmian's server takes a
    list of tags, as JSON, in place of an identifier.
    """
    names: set[bytes] = set()
    try:
        for field in question.payload_fields():
            if field.tag == _UNIQUE_IDENTIFIER:
                meant = _meant(question.frame[field.start : field.end], field.type, placeholder, named)
                if meant is None:
                    return None
                names |= meant
    except ProtocolError:  # the key manager may have read other names
        return None
    return names or _known(placeholder)


def _meant(value: bytes, item_type: int, placeholder: bytes | None, named: _NamedBefore) -> set[bytes] | None:
    """Return the objects that a Unique Identifier of a request may mean; None if that can't be known."""
    if item_type in _TEXTS:
        text = value.rstrip(b"\0")
        if text.startswith(b"["):
            return None
        return {text} if text else _known(placeholder)
    if item_type == ItemType.ENUMERATION and value == _ID_PLACEHOLDER:
        return _known(placeholder)
    before = named.identifiers()
    return before | {value} if before else None


def _known(placeholder: bytes | None) -> set[bytes] | None:
    return None if placeholder is None else {placeholder}


def _identifiers(item: RequestItem | ResponseItem, tags: frozenset[int] = UNIQUE_IDENTIFIERS) -> set[bytes] | None:
    """Return the identifiers in a payload, without empty ones; None if it can't be read."""
    try:
        return {identifier for identifier in item.identifiers(tags) if identifier}
    except ProtocolError:
        return None


def _ignoring_case(identifiers: set[bytes]) -> set[bytes]:
    """Return the identifiers with UUIDs in lower case: a UUID is the same in either case (RFC 9562, 4)."""
    return {lower if _UUID.fullmatch(lower := name.lower()) else name for name in identifiers}


# Objects that were made ---------------------------------------------------------------------------------------------


class MadeObjects:
    """Identifiers of the latest 32 objects that were made on one session.

    The answer to a Create names an object that the request can't name. If a key manager sends the answer to an earlier
    Create twice, the second one names the same object again.
    """

    __slots__ = ("_given",)

    def __init__(self) -> None:
        self._given: deque[bytes] = deque(maxlen=_LATEST)

    def __repr__(self) -> str:
        return f"<MadeObjects, the latest {len(self._given)}>"

    def were_made_before(self, response: Response, request: Request) -> bool:
        """Return True if a response gives an identifier that an earlier response gave; else remember its identifiers.

        A Poll may get the same answer any number of times. Identifiers that the request names do not count.
        """
        made: set[bytes] = set()
        for item in response.items:
            if item.operation in MAKING and item.status == ResultStatus.SUCCESS:
                made |= _identifiers(item) or set()
        if not made or any(question.operation == _POLL for question in request.items):
            return False
        for question in request.items:
            made -= _identifiers(question) or set()
        if not made.isdisjoint(self._given):
            return True
        self._given.extend(made)
        return False
