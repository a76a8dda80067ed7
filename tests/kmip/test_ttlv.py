"""The encoding: the specification's own examples, round trips, and bytes that are no item."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import FIXED_LENGTH, ItemType, Tag
from tests.kit.messages import VENDOR_TAG, grows_in_proportion, nested, printed, raw, texts

TAG = 0x420020  # the tag of all of the specification's examples


class TypeCase(NamedTuple):
    """A type of item: how it is written and read, and which values it has."""

    write: Callable[[int, Any], bytes]
    read: Callable[[bytes, ttlv.Item], Any]
    values: st.SearchStrategy[Any]


KINDS = {
    ItemType.INTEGER: TypeCase(ttlv.integer, ttlv.read_integer, st.integers(-(2**31), 2**31 - 1)),
    ItemType.LONG_INTEGER: TypeCase(ttlv.long_integer, ttlv.read_long_integer, st.integers(-(2**63), 2**63 - 1)),
    ItemType.BIG_INTEGER: TypeCase(ttlv.big_integer, ttlv.read_big_integer, st.integers(-(2**200), 2**200)),
    ItemType.ENUMERATION: TypeCase(ttlv.enumeration, ttlv.read_enumeration, st.integers(0, 2**32 - 1)),
    ItemType.BOOLEAN: TypeCase(ttlv.boolean, ttlv.read_boolean, st.booleans()),
    ItemType.TEXT_STRING: TypeCase(ttlv.text, ttlv.read_text, texts),
    ItemType.BYTE_STRING: TypeCase(ttlv.octets, ttlv.read_bytes, st.binary(max_size=40)),
    ItemType.DATE_TIME: TypeCase(ttlv.date_time, ttlv.read_date_time, st.integers(-(2**63), 2**63 - 1)),
    ItemType.INTERVAL: TypeCase(ttlv.interval, ttlv.read_interval, st.integers(0, 2**32 - 1)),
}

#: The examples of 1.4 section 9.1.2, as printed there.
EXAMPLES = {
    "integer": (ItemType.INTEGER, 8, "42 00 20 | 02 | 00 00 00 04 | 00 00 00 08 00 00 00 00"),
    "long integer": (
        ItemType.LONG_INTEGER,
        123456789000000000,
        "42 00 20 | 03 | 00 00 00 08 | 01 B6 9B 4B A5 74 92 00",
    ),
    "big integer": (
        ItemType.BIG_INTEGER,
        1234567890000000000000000000,
        "42 00 20 | 04 | 00 00 00 10 | 00 00 00 00 03 FD 35 EB 6B C2 DF 46 18 08 00 00",
    ),
    "enumeration": (ItemType.ENUMERATION, 255, "42 00 20 | 05 | 00 00 00 04 | 00 00 00 FF 00 00 00 00"),
    "boolean": (ItemType.BOOLEAN, True, "42 00 20 | 06 | 00 00 00 08 | 00 00 00 00 00 00 00 01"),
    "text string": (
        ItemType.TEXT_STRING,
        "Hello World",
        "42 00 20 | 07 | 00 00 00 0B | 48 65 6C 6C 6F 20 57 6F 72 6C 64 00 00 00 00 00",
    ),
    "byte string": (ItemType.BYTE_STRING, b"\1\2\3", "42 00 20 | 08 | 00 00 00 03 | 01 02 03 00 00 00 00 00"),
    "date-time": (
        ItemType.DATE_TIME,
        int(datetime(2008, 3, 14, 11, 56, 40, tzinfo=UTC).timestamp()),
        "42 00 20 | 09 | 00 00 00 08 | 00 00 00 00 47 DA 67 F8",
    ),
    "interval": (
        ItemType.INTERVAL,
        int(timedelta(days=10).total_seconds()),
        "42 00 20 | 0A | 00 00 00 04 | 00 0D 2F 00 00 00 00 00",
    ),
}
STRUCTURE = printed(
    "42 00 20 | 01 | 00 00 00 20 | 42 00 04 | 05 | 00 00 00 04 | 00 00 00 FE 00 00 00 00"
    " | 42 00 05 | 02 | 00 00 00 04 | 00 00 00 FF 00 00 00 00"
)

examples = pytest.mark.parametrize(("kind", "value", "text"), EXAMPLES.values(), ids=EXAMPLES)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())


def items(buffer: bytes) -> list[ttlv.Item]:
    return list(ttlv.walk(buffer, 0, len(buffer)))


def only_item(buffer: bytes) -> ttlv.Item:
    (item,) = items(buffer)
    return item


# The specification's examples, both ways, and every reader three ways -------------------------------------------------


@examples
def test_writes_the_specifications_example(kind: ItemType, value: object, text: str) -> None:
    assert KINDS[kind].write(TAG, value) == printed(text)


@examples
def test_reads_the_specifications_example(kind: ItemType, value: object, text: str) -> None:
    item = only_item(printed(text))

    assert (item.tag, item.type) == (TAG, kind)
    assert KINDS[kind].read(printed(text), item) == value


@examples
def test_reads_the_example_where_more_follows(kind: ItemType, value: object, text: str) -> None:
    buffer = printed(text) + STRUCTURE

    first, second = items(buffer)

    assert KINDS[kind].read(buffer, first) == value
    assert (second.tag, second.type) == (TAG, ItemType.STRUCTURE)


@examples
def test_refuses_the_example_while_it_is_not_whole(kind: ItemType, value: object, text: str) -> None:
    """An item is whole if all of its value is there, without the padding."""
    buffer = printed(text)
    whole = only_item(buffer).end

    for size in range(1, whole):
        with pytest.raises(ProtocolError):
            items(buffer[:size])
    for size in range(whole, len(buffer) + 1):
        assert KINDS[kind].read(buffer[:size], only_item(buffer[:size])) == value


@pytest.mark.parametrize("text", [text for _, _, text in EXAMPLES.values()], ids=EXAMPLES)
def test_refuses_the_example_with_stray_bytes_behind(text: str) -> None:
    for stray in range(1, 8):
        with pytest.raises(ProtocolError, match="too few"):
            items(printed(text) + bytes(stray))


def test_writes_the_structure_of_the_specification() -> None:
    parts = ttlv.enumeration(0x420004, 254), ttlv.integer(0x420005, 255)

    assert ttlv.structure(TAG, *parts) == STRUCTURE


def test_reads_the_structure_of_the_specification() -> None:
    outer = only_item(STRUCTURE)

    first, second = ttlv.walk(STRUCTURE, outer.start, outer.end)

    assert (first.tag, ttlv.read_enumeration(STRUCTURE, first)) == (0x420004, 254)
    assert (second.tag, ttlv.read_integer(STRUCTURE, second)) == (0x420005, 255)


# Round trips ----------------------------------------------------------------------------------------------------------


@kinds
@given(data=st.data())
def test_written_values_are_read(kind: ItemType, data: st.DataObject) -> None:
    value = data.draw(KINDS[kind].values)

    buffer = KINDS[kind].write(TAG, value)

    assert len(buffer) % 8 == 0
    assert only_item(buffer)[:2] == (TAG, kind)
    assert KINDS[kind].read(buffer, only_item(buffer)) == value


@pytest.mark.parametrize("bits", [0, 1, 63, 64, 65, 127, 128])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_big_integer_keeps_its_sign_at_every_edge(bits: int, sign: int, offset: int) -> None:
    value = sign * 2**bits + offset

    buffer = ttlv.big_integer(TAG, value)

    assert ttlv.read_big_integer(buffer, only_item(buffer)) == value
    assert (len(buffer) - 8) % 8 == 0


Leaf = tuple[int, ItemType, Any]
leaves: st.SearchStrategy[Any] = st.one_of(
    [st.tuples(st.sampled_from(list(Tag)), st.just(kind), KINDS[kind].values) for kind in KINDS]
)
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(
        st.sampled_from(list(Tag)), st.just(ItemType.STRUCTURE), st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


def write_tree(tree: Leaf) -> bytes:
    tag, kind, value = tree
    if kind is ItemType.STRUCTURE:
        return ttlv.structure(tag, *map(write_tree, value))
    return KINDS[kind].write(tag, value)


def read_tree(buffer: bytes, item: ttlv.Item) -> Leaf:
    if item.type == ItemType.STRUCTURE:
        inner = tuple(read_tree(buffer, child) for child in ttlv.walk(buffer, item.start, item.end))
        return item.tag, ItemType.STRUCTURE, inner
    return item.tag, ItemType(item.type), KINDS[ItemType(item.type)].read(buffer, item)


@given(trees)
def test_a_tree_that_is_written_is_read(tree: Leaf) -> None:
    buffer = write_tree(tree)

    assert read_tree(buffer, only_item(buffer)) == tree


@given(st.binary(max_size=200))
def test_garbage_only_raises_protocol_error(garbage: bytes) -> None:
    position = 0
    with suppress(ProtocolError):
        for item in ttlv.walk(garbage, 0, len(garbage)):
            assert position < item.start <= item.end <= len(garbage), "walking goes forward, and stays inside"
            position = item.start
            for kind in KINDS.values():
                with suppress(ProtocolError):
                    kind.read(garbage, item)


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=30), st.integers(0, 5))
def test_depth_check_of_garbage_raises_nothing(blocks: list[bytes], limit: int) -> None:
    structures = b"".join(b"\x42\0\1\1" + block[4:] for block in blocks)

    for buffer in (b"".join(blocks), structures):
        with suppress(ProtocolError):
            ttlv.check_depth(buffer, 0, len(buffer), limit)


# Bytes that are no item -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FIXED_LENGTH, ids=lambda kind: ItemType(kind).name.lower())
def test_a_type_of_one_length_has_no_other(kind: int) -> None:
    for length in {*range(17), 2**32 - 1} - {FIXED_LENGTH[kind]}:
        with pytest.raises(ProtocolError):
            items(raw(TAG, kind, length, bytes(24)))
    assert only_item(raw(TAG, kind, FIXED_LENGTH[kind], bytes(8))).type == kind


def test_a_length_is_unsigned_and_not_believed() -> None:
    for length in (9, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1):
        with pytest.raises(ProtocolError, match="ends beyond its structure"):
            items(raw(TAG, ItemType.BYTE_STRING, length, bytes(8)))


def test_item_of_unknown_type_is_skipped() -> None:
    strange = raw(VENDOR_TAG, 0x7F, 3, bytes(8))

    assert [item.tag for item in items(strange + STRUCTURE)] == [VENDOR_TAG, TAG]


@pytest.mark.parametrize("kind", ttlv.UNPADDED)
def test_item_with_an_uncertain_end_is_refused(kind: int) -> None:
    """Readers disagree on the position of the second item: after the padding, or within it."""
    odd = raw(TAG, kind, 12, bytes(12))

    assert only_item(odd).end == 20
    assert only_item(odd + bytes(4)).end == 20
    with pytest.raises(ProtocolError, match="items follow it"):
        items(odd + bytes(4) + STRUCTURE)


@kinds
def test_every_reader_refuses_every_other_type(kind: ItemType) -> None:
    for other in KINDS:
        buffer = raw(TAG, other, FIXED_LENGTH.get(other, 8), bytes(8))
        if other is kind:
            KINDS[kind].read(buffer, only_item(buffer))
        else:
            with pytest.raises(ProtocolError, match=kind.name):
                KINDS[kind].read(buffer, only_item(buffer))


def test_a_text_is_read_without_the_padding_that_some_clients_count_in() -> None:
    padded = raw(TAG, ItemType.TEXT_STRING, 16, b"Hello World\0\0\0\0\0")

    assert ttlv.read_text(padded, only_item(padded)) == "Hello World"


def test_a_text_that_is_not_utf8_is_refused() -> None:
    latin = raw(TAG, ItemType.TEXT_STRING, 4, b"caf\xe9\0\0\0\0")

    with pytest.raises(ProtocolError, match="UTF-8"):
        ttlv.read_text(latin, only_item(latin))


@pytest.mark.parametrize("value", ["00 00 00 00 00 00 00 02", "80 00 00 00 00 00 00 00", "FF FF FF FF FF FF FF FF"])
def test_any_nonzero_boolean_is_true(value: str) -> None:
    buffer = printed("42 00 20 | 06 | 00 00 00 08 | " + value)

    assert ttlv.read_boolean(buffer, only_item(buffer)) is True


# Finding --------------------------------------------------------------------------------------------------------------


def test_find_gives_the_first_of_its_tag() -> None:
    buffer = ttlv.integer(TAG, 1) + ttlv.integer(VENDOR_TAG, 2) + ttlv.integer(VENDOR_TAG, 3)

    found = ttlv.find(buffer, 0, len(buffer), VENDOR_TAG)

    assert found is not None
    assert ttlv.read_integer(buffer, found) == 2


def test_find_looks_at_one_level_only() -> None:
    assert ttlv.find(STRUCTURE, 0, len(STRUCTURE), 0x420004) is None


def test_find_raises_for_what_it_cannot_step_over() -> None:
    with pytest.raises(ProtocolError):
        ttlv.find(STRUCTURE[:-8], 0, len(STRUCTURE) - 8, VENDOR_TAG)


# Depth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 2, 31, 32, 1000])
def test_the_depth_limit_is_exact(limit: int) -> None:
    ttlv.check_depth(nested(limit), 0, 8 * limit, limit)
    with pytest.raises(ProtocolError, match="deep"):
        ttlv.check_depth(nested(limit + 1), 0, 8 * (limit + 1), limit)


@pytest.mark.parametrize("before", [b"", ttlv.octets(TAG, b"abc"), nested(4), nested(4) * 9], ids=len)
def test_depth_is_counted_behind_shallower_items_too(before: bytes) -> None:
    for deep, allowed in ((nested(5), True), (nested(6), False)):
        buffer = before + deep + before
        if allowed:
            ttlv.check_depth(buffer, 0, len(buffer), 5)
        else:
            with pytest.raises(ProtocolError, match="deep"):
                ttlv.check_depth(buffer, 0, len(buffer), 5)


def test_ten_thousand_levels_are_no_recursion() -> None:
    ttlv.check_depth(nested(10_000), 0, 80_000, 10_000)
    with pytest.raises(ProtocolError, match="deep"):
        ttlv.check_depth(nested(10_000), 0, 80_000, 9_999)


def test_depth_check_skips_bytes_that_are_no_items() -> None:
    overrun = ttlv.structure(TAG, raw(TAG, ItemType.STRUCTURE, 2**32 - 1, nested(20)))

    ttlv.check_depth(overrun, 0, len(overrun), 1)


@pytest.mark.parametrize(
    "buffer",
    [
        pytest.param(lambda size: nested(size) + ttlv.octets(TAG, b"") * size, id="deep, then wide"),
        pytest.param(lambda size: ttlv.octets(TAG, b"") * 2 * size, id="wide"),
        pytest.param(lambda size: nested(5) * size, id="a little deep, often"),
        pytest.param(lambda size: ttlv.structure(TAG, nested(size - 1) * 3), id="deep, again and again"),
        pytest.param(lambda size: raw(TAG, ItemType.STRUCTURE, 9, bytes(16)) * size, id="odd"),
    ],
)
def test_checking_size_takes_steps_in_proportion_to_size(buffer: Callable[[int], bytes]) -> None:
    def check(size: int) -> Callable[[], object]:
        message = buffer(size)
        return lambda: ttlv.check_size(message, 0, len(message), max_depth=size, max_fields=len(message))

    assert grows_in_proportion(check)


def test_walking_takes_steps_in_proportion_to_size() -> None:
    def walk(size: int) -> Callable[[], object]:
        buffer = ttlv.octets(TAG, b"abc") * size
        return lambda: items(buffer)

    assert grows_in_proportion(walk)


# Changing -------------------------------------------------------------------------------------------------------------


def test_splicing_lengthens_the_structures_around_a_value_only() -> None:
    def message(value: bytes) -> bytes:
        inner = ttlv.structure(Tag.REQUEST_PAYLOAD, ttlv.text(Tag.UNIQUE_IDENTIFIER, "1"), ttlv.octets(0x540001, value))
        return ttlv.structure(
            Tag.REQUEST_MESSAGE, ttlv.integer(Tag.BATCH_COUNT, 1), inner, ttlv.text(Tag.RESULT_MESSAGE, "behind")
        )

    before = message(b"old")
    start = before.index(b"old")

    for new in (b"", b"new", b"exactly8", b"much longer than it was before"):
        assert ttlv.splice(before, {start: new}) == message(new)


def test_splicing_several_values_keeps_the_order() -> None:
    def message(*values: bytes) -> bytes:
        return ttlv.structure(Tag.REQUEST_MESSAGE, *(ttlv.structure(0x540002, ttlv.octets(1, one)) for one in values))

    before = message(b"a" * 9, b"b", b"c" * 20)
    starts = [before.index(letter) for letter in (b"a", b"b", b"c")]

    assert ttlv.splice(before, {starts[2]: b"z", starts[0]: b"x" * 30}) == message(b"x" * 30, b"b", b"z")
    assert ttlv.splice(before, {}) == before


def test_splicing_does_not_look_into_structures_without_a_value() -> None:
    garbage = ttlv.structure(0x540002, b"\xff" * 16)
    before = ttlv.structure(Tag.REQUEST_MESSAGE, garbage, ttlv.octets(0x540001, b"old"), garbage)

    after = ttlv.splice(before, {before.index(b"old"): b"new one, longer"})

    assert after == ttlv.structure(Tag.REQUEST_MESSAGE, garbage, ttlv.octets(0x540001, b"new one, longer"), garbage)
