"""Helpers for tests of KMIP: messages, whole and broken, and functions that read all of them."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.binding import credentials
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import CredentialType, ItemType, Operation, Tag

VERSIONS: Final[list[Version]] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)]
WITHOUT_COUNT: Final[Version] = (3, 0)
VENDOR_TAG: Final = 0x540001
UNKNOWN_TYPE: Final = 0x0F


def printed(text: str) -> bytes:
    """Return bytes from the specification's notation: 42 00 20 | 02 | 00 00 00 04 | 00 00 00 08 00 00 00 00."""
    return bytes.fromhex(text.replace("|", " "))


# Messages, built field by field so that a test can leave one out, double it or bend it ------------------------------


def protocol_version(version: Version = (1, 4)) -> bytes:
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )


def batch_count(number: int = 1) -> bytes:
    return ttlv.integer(Tag.BATCH_COUNT, number)


def operation(number: int = Operation.GET) -> bytes:
    return ttlv.enumeration(Tag.OPERATION, number)


def identifier(text: str = "1") -> bytes:
    return ttlv.text(Tag.UNIQUE_IDENTIFIER, text)


def payload(*fields: bytes) -> bytes:
    return ttlv.structure(Tag.REQUEST_PAYLOAD, *fields)


def batch_item(*fields: bytes) -> bytes:
    return ttlv.structure(Tag.BATCH_ITEM, *fields)


def get(text: str = "1") -> bytes:
    return batch_item(operation(), payload(identifier(text)))


def request_header(*fields: bytes) -> bytes:
    return ttlv.structure(Tag.REQUEST_HEADER, *fields)


def request_message(*parts: bytes) -> bytes:
    return ttlv.structure(Tag.REQUEST_MESSAGE, *parts)


def request(*items: bytes, version: Version = (1, 4), header: Iterable[bytes] = ()) -> bytes:
    """Return a request of encoded items, with further encoded fields in its header."""
    count = () if version >= (3, 0) else (batch_count(len(items)),)
    return request_message(request_header(protocol_version(version), *header, *count), *items)


def response(*items: bytes, version: Version = (1, 4), header: Iterable[bytes] = ()) -> bytes:
    """Return a response of encoded items."""
    count = () if version >= (3, 0) else (batch_count(len(items)),)
    head = ttlv.structure(Tag.RESPONSE_HEADER, protocol_version(version), *header, *count)
    return ttlv.structure(Tag.RESPONSE_MESSAGE, head, *items)


def success(number: int | None = Operation.GET, batch_id: bytes | None = None, *fields: bytes) -> bytes:
    """Return a response's item with Success, and the fields that it echoes."""
    return batch_item(
        *([] if number is None else [operation(number)]),
        *([] if batch_id is None else [ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, batch_id)]),
        ttlv.enumeration(Tag.RESULT_STATUS, 0),
        *([ttlv.structure(Tag.RESPONSE_PAYLOAD, *fields)] if fields else []),
    )


def raw(tag: int, item_type: int, length: int, value: bytes) -> bytes:
    """Return an item with these parts, valid or not."""
    return ttlv.HEAD.pack(ttlv.word(tag, item_type), length) + value


def nested(depth: int) -> bytes:
    """Return ``depth`` nested structures."""
    heads = [raw(Tag.ATTRIBUTE, ItemType.STRUCTURE, 8 * below, b"") for below in reversed(range(depth))]
    return b"".join(heads)


# Looking at everything ----------------------------------------------------------------------------------------------


def properties(view: object) -> list[str]:
    """The names of every property of a view."""
    return [name for name in dir(type(view)) if isinstance(getattr(type(view), name), property)]


def look(view: Request | Response) -> int:
    """Read all properties of a message and its items; return the number that raised ProtocolError."""
    refused = 0
    repr(view)
    for part in (view, *view.items):
        for name in properties(part):
            try:
                getattr(part, name)
            except ProtocolError:
                refused += 1
    return refused


def read_if_possible(frame: bytes) -> Request | Response | None:
    """Decode a frame by its tag, and read all of it. Raises all errors but ProtocolError."""
    decode: Callable[[bytes], Request | Response]
    decode = decode_response if frame[:3] == Tag.RESPONSE_MESSAGE.to_bytes(3, "big") else decode_request
    try:
        view = decode(frame)
    except ProtocolError:
        return None
    look(view)
    return view


def steps(run: Callable[[], object]) -> int:
    """Return the number of lines of gateway.kmip that a call runs: a measure of work without a clock."""
    count = 0

    def trace(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        nonlocal count
        if "/gateway/kmip/" not in frame.f_code.co_filename:
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def grows_in_proportion(make: Callable[[int], Callable[[], object]], size: int = 50) -> bool:
    """Return True if each further ``size`` adds the same number of steps. ``make`` returns the call for a size."""
    first, second, third = (steps(make(times * size)) for times in (1, 2, 3))
    assert second > first > size, "the work does not depend on the size: nothing was measured"
    return third - second <= second - first + 10


# Key managers that read carelessly ----------------------------------------------------------------------------------


class Habits(NamedTuple):
    """The habits of a careless key manager. Each habit was seen, or is likely."""

    pads_structures: bool = True  # no: the next item begins right behind a structure or a big integer, padded or not
    trusts_lengths: bool = True  # no: an integer takes 16 bytes, whatever its head says
    by_position: bool = False  # yes: what stands first in an item is its operation, what stands behind the header items
    last_wins: bool = False  # yes: of a field that occurs twice, the second counts


CARELESS: Final = [
    Habits(pads_structures=False),
    Habits(trusts_lengths=False),
    Habits(by_position=True),
    Habits(last_wins=True),
    Habits(pads_structures=False, trusts_lengths=False, by_position=True, last_wins=True),
]

_Items = list[tuple[int, int, bytes]]
_SIXTEEN = {ItemType.INTEGER: 4, ItemType.ENUMERATION: 4, ItemType.INTERVAL: 4, ItemType.BOOLEAN: 8}


def _children(value: bytes, habits: Habits) -> _Items:
    found = []
    position = 0
    while position + 8 <= len(value):
        word, length = ttlv.HEAD.unpack_from(value, position)
        kind = word & 0xFF
        if kind in _SIXTEEN and not habits.trusts_lengths:
            length = _SIXTEEN[ItemType(kind)]
        position += 8
        if position + length > len(value):
            raise ValueError
        found.append((word >> 8, kind, value[position : position + length]))
        unpadded = kind in ttlv.UNPADDED and not habits.pads_structures
        position += length if unpadded else ttlv.padded(length)
    return found


def _pick(items: _Items, tag: int, habits: Habits) -> bytes | None:
    found = [value for its_tag, _, value in items if its_tag == tag]
    return found[-1 if habits.last_wins else 0] if found else None


class Understood(NamedTuple):
    """A batch item, as read by a careless key manager."""

    operation: int
    identifiers: list[bytes]
    group_member: int | None


def understand(frame: bytes, habits: Habits) -> list[Understood] | None:
    """Return the batch items that a key manager with these habits would execute; None if it refuses the message."""
    try:
        (_, _, header), *parts = _children(frame[8:], habits)
        count = _pick(_children(header, habits), Tag.BATCH_COUNT, habits)
        items = [value for tag, _, value in parts if tag == Tag.BATCH_ITEM]
        if count is not None:
            wanted = int.from_bytes(count, "big")
            items = [value for _, _, value in parts[:wanted]] if habits.by_position else items[:wanted]
        return [_understand_item(item, habits) for item in items]
    except (ValueError, IndexError):
        return None


def _understand_item(item: bytes, habits: Habits) -> Understood:
    fields = _children(item, habits)
    number = fields[0][2] if habits.by_position else _pick(fields, Tag.OPERATION, habits)
    if number is None:
        raise ValueError
    content = _children(_pick(fields, Tag.REQUEST_PAYLOAD, habits) or b"", habits)
    member = _pick(content, Tag.OBJECT_GROUP_MEMBER, habits)
    return Understood(
        int.from_bytes(number, "big"),
        [
            value.rstrip(b"\0") if kind == ItemType.TEXT_STRING else value
            for tag, kind, value in content
            if tag in (Tag.UNIQUE_IDENTIFIER, Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER, Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER)
        ],
        None if member is None else int.from_bytes(member, "big"),
    )


# Strategies ---------------------------------------------------------------------------------------------------------

versions = st.sampled_from([*VERSIONS, WITHOUT_COUNT])
tags = st.sampled_from([*Tag, VENDOR_TAG, VENDOR_TAG + 1])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**32 - 1)

#: Items that mean nothing to the gateway: vendors' fields, unknown types, deep structures.
strange_items = st.one_of(
    st.builds(ttlv.octets, st.just(VENDOR_TAG), st.binary(max_size=20)),
    st.builds(ttlv.text, st.just(VENDOR_TAG), texts),
    st.builds(lambda value: raw(VENDOR_TAG, UNKNOWN_TYPE, len(value), value + bytes(-len(value) % 8)), st.binary()),
    st.builds(lambda depth: ttlv.structure(Tag.MESSAGE_EXTENSION, nested(depth)), st.integers(0, 5)),
    st.builds(ttlv.big_integer, st.just(VENDOR_TAG), st.integers()),
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def tickets_of(read: Request) -> list[bytes]:
    """Return the tickets in a request."""
    return [read.frame[bound.start : bound.end] for bound in credentials(read)]


class Wish(NamedTuple):
    """A batch item of a generated request, and the values that its view must have."""

    operation: int
    unique_batch_item_id: bytes | None
    unique_identifiers: list[str]
    correlation_value: bytes | None
    asynchronous_correlation_value: bytes | None
    init_indicator: bool | None
    final_indicator: bool | None
    object_type: int | None
    object_group_member: int | None
    strange: list[bytes]

    def encode(self) -> bytes:
        fields = [
            *(ttlv.text(Tag.UNIQUE_IDENTIFIER, text) for text in self.unique_identifiers),
            *_given(ttlv.octets, Tag.CORRELATION_VALUE, self.correlation_value),
            *_given(ttlv.octets, Tag.ASYNCHRONOUS_CORRELATION_VALUE, self.asynchronous_correlation_value),
            *_given(ttlv.boolean, Tag.INIT_INDICATOR, self.init_indicator),
            *_given(ttlv.boolean, Tag.FINAL_INDICATOR, self.final_indicator),
            *_given(ttlv.enumeration, Tag.OBJECT_TYPE, self.object_type),
            *_given(ttlv.enumeration, Tag.OBJECT_GROUP_MEMBER, self.object_group_member),
        ]
        return batch_item(
            operation(self.operation),
            *_given(ttlv.octets, Tag.UNIQUE_BATCH_ITEM_ID, self.unique_batch_item_id),
            payload(*self.strange, *fields, *self.strange),
            *self.strange,
        )


wishes = st.builds(
    Wish,
    operation=st.sampled_from([*map(int, Operation), 0x80000001]),
    unique_batch_item_id=maybe(st.binary(max_size=20)),
    unique_identifiers=st.lists(texts, max_size=3),
    correlation_value=maybe(st.binary(max_size=20)),
    asynchronous_correlation_value=maybe(st.binary(max_size=20)),
    init_indicator=maybe(st.booleans()),
    final_indicator=maybe(st.booleans()),
    object_type=maybe(numbers),
    object_group_member=maybe(numbers),
    strange=st.lists(strange_items, max_size=2),
)


class Letter(NamedTuple):
    """A generated request, and the values that its view must have."""

    version: Version
    maximum_response_size: int | None
    client_correlation_value: str | None
    batch_error_continuation_option: int | None
    batch_order: bool | None
    time_stamp: int | None
    tickets: list[bytes]
    wishes: list[Wish]
    strange: list[bytes]

    def encode(self) -> bytes:
        fields = [
            *_given(ttlv.integer, Tag.MAXIMUM_RESPONSE_SIZE, self.maximum_response_size),
            *_given(ttlv.text, Tag.CLIENT_CORRELATION_VALUE, self.client_correlation_value),
            *([authentication(*map(ticket_credential, self.tickets))] if self.tickets else []),
            *_given(ttlv.enumeration, Tag.BATCH_ERROR_CONTINUATION_OPTION, self.batch_error_continuation_option),
            *_given(ttlv.boolean, Tag.BATCH_ORDER_OPTION, self.batch_order),
            *_given(ttlv.date_time, Tag.TIME_STAMP, self.time_stamp),
        ]
        items = (wish.encode() for wish in self.wishes)
        return request(*items, version=self.version, header=[*self.strange, *fields, *self.strange])


letters = st.builds(
    Letter,
    version=versions,
    maximum_response_size=maybe(st.integers(0, 2**31 - 1)),
    client_correlation_value=maybe(texts),
    batch_error_continuation_option=maybe(numbers),
    batch_order=maybe(st.booleans()),
    time_stamp=maybe(st.integers(-(2**63), 2**63 - 1)),
    tickets=st.lists(st.binary(max_size=20), max_size=2),
    wishes=st.lists(wishes, min_size=1, max_size=4),
    strange=st.lists(strange_items, max_size=2),
)


def _given(encode: Callable[[int, Any], bytes], tag: Tag, value: Any) -> list[bytes]:
    return [] if value is None else [encode(tag, value)]


def authentication(*credentials: bytes) -> bytes:
    return ttlv.structure(Tag.AUTHENTICATION, *credentials)


def credential(kind: int, *value: bytes) -> bytes:
    """Return a credential of a type; its value is a structure of these fields."""
    return ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, kind),
        ttlv.structure(Tag.CREDENTIAL_VALUE, *value),
    )


def ticket_credential(value: bytes) -> bytes:
    ticket = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), ttlv.octets(Tag.TICKET_VALUE, value))
    return credential(CredentialType.TICKET, ticket)


class Reply(NamedTuple):
    """A batch item of a generated response: its result, and the contents of its payload."""

    result: compose.Result
    unique_identifiers: list[str]
    correlation_value: bytes | None


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    identifiers = draw(st.lists(texts, max_size=3))
    correlation_value = draw(maybe(st.binary(max_size=20)))
    fields = [
        *(ttlv.text(Tag.UNIQUE_IDENTIFIER, text) for text in identifiers),
        *_given(ttlv.octets, Tag.CORRELATION_VALUE, correlation_value),
    ]
    result = compose.Result(
        status=draw(numbers),
        operation=draw(maybe(st.sampled_from([*map(int, Operation), 0x80000001]))),
        unique_batch_item_id=draw(maybe(st.binary(max_size=20))),
        reason=draw(maybe(numbers)),
        message=draw(maybe(texts)),
        payload=b"".join(fields) if fields else None,
        asynchronous_correlation_value=draw(maybe(st.binary(max_size=20))),
    )
    return Reply(result, identifiers, correlation_value)


frames = st.builds(Letter.encode, letters) | st.builds(
    lambda version, answers: compose.encode_response(version, [answer.result for answer in answers], now=0),
    versions,
    st.lists(replies(), min_size=1, max_size=3),
)

#: Whole requests with all kinds of fields, to be broken.
WHOLE_REQUESTS: Final = [
    request(get()),
    request(get("1"), get("22"), batch_item(operation(Operation.DESTROY), payload(identifier("333")))),
    request(get(), batch_item(operation(0x8000BEEF), payload(identifier())), version=WITHOUT_COUNT),
    request(
        batch_item(
            operation(Operation.LOCATE),
            ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, b"7"),
            payload(ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 2), ttlv.structure(Tag.ATTRIBUTE, identifier())),
            ttlv.structure(Tag.MESSAGE_EXTENSION, ttlv.text(Tag.VENDOR_IDENTIFICATION, "x"), nested(3)),
        ),
        version=(2, 1),
        header=[
            ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 8192),
            ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "abc"),
            ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 2),
            authentication(credential(CredentialType.USERNAME_AND_PASSWORD), ticket_credential(b"ticket")),
            ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 1),
            ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=True),
            ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000),
        ],
    ),
    request(
        batch_item(
            operation(Operation.ENCRYPT),
            payload(
                identifier("abcdefgh"),
                ttlv.octets(Tag.DATA, bytes(20)),
                ttlv.octets(Tag.CORRELATION_VALUE, b"stream"),
                ttlv.boolean(Tag.INIT_INDICATOR, value=True),
                ttlv.boolean(Tag.FINAL_INDICATOR, value=False),
                ttlv.big_integer(VENDOR_TAG, 2**70),
            ),
        ),
        batch_item(operation(Operation.POLL), payload(ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, b"later"))),
    ),
]
WHOLE_RESPONSES: Final = [
    response(success(Operation.GET, b"7", ttlv.enumeration(Tag.OBJECT_TYPE, 2), identifier())),
    response(success(), success(None), version=WITHOUT_COUNT),
    compose.encode_response(
        (1, 4),
        [
            compose.Result(1, Operation.GET, b"1", 1, "not found"),
            compose.Result(2, Operation.CREATE, b"2", asynchronous_correlation_value=b"later"),
            compose.Result(0, Operation.LOCATE, payload=identifier("1") + identifier("2")),
        ],
        now=0,
    ),
]


@st.composite
def broken(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A message that was whole once: bytes flipped, words and lengths rewritten, ranges doubled, deleted and cut off.

    Its own length is set right again as a rule, since every reader's first look is at that.
    """
    frame = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        draw(st.sampled_from(_INJURIES))(frame, draw)
    if len(frame) >= 8 and draw(st.integers(0, 3)):
        frame += bytes(-len(frame) % 8)
        frame[4:8] = (len(frame) - 8).to_bytes(4, "big")
    return bytes(frame)


def _flip(frame: bytearray, draw: st.DrawFn) -> None:
    if frame:
        frame[draw(st.integers(0, len(frame) - 1))] ^= 1 << draw(st.integers(0, 7))


def _rewrite_length(frame: bytearray, draw: st.DrawFn) -> None:
    lengths = [0, 1, 3, 4, 5, 7, 8, 9, 12, 16, 24, len(frame), 2**31, 2**32 - 8, 2**32 - 1]
    at = 8 * draw(st.integers(0, len(frame) // 8))
    frame[at + 4 : at + 8] = draw(st.sampled_from(lengths)).to_bytes(4, "big")


def _rewrite_word(frame: bytearray, draw: st.DrawFn) -> None:
    at = 8 * draw(st.integers(0, len(frame) // 8))
    word = ttlv.word(draw(tags), draw(st.sampled_from([*map(int, ItemType), UNKNOWN_TYPE])))
    frame[at : at + 4] = word.to_bytes(4, "big")


def _range(frame: bytearray, draw: st.DrawFn) -> slice:
    step = draw(st.sampled_from([8, 8, 8, 1]))
    start = step * draw(st.integers(0, len(frame) // step))
    return slice(start, start + step * draw(st.integers(1, 6)))


def _double(frame: bytearray, draw: st.DrawFn) -> None:
    taken = _range(frame, draw)
    frame[taken.start : taken.start] = frame[taken]


def _delete(frame: bytearray, draw: st.DrawFn) -> None:
    del frame[_range(frame, draw)]


def _cut(frame: bytearray, draw: st.DrawFn) -> None:
    del frame[draw(st.integers(0, len(frame))) :]


_INJURIES: Final = [_flip, _rewrite_length, _rewrite_word, _double, _delete, _cut]
