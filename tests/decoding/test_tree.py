"""Reading TTLV strictly: each mistake is named with the byte at which it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decoding.tree import MAX_DEPTH, Node, read, type_name
from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, Tag
from tests.kit.messages import get, nested, raw, request

VALUES = {
    ttlv.integer(Tag.BATCH_COUNT, -8): -8,
    ttlv.long_integer(Tag.BATCH_COUNT, -(2**40)): -(2**40),
    ttlv.big_integer(Tag.BATCH_COUNT, -(2**80)): -(2**80),
    ttlv.enumeration(Tag.BATCH_COUNT, 2**32 - 1): 2**32 - 1,
    ttlv.boolean(Tag.BATCH_COUNT, value=True): True,
    ttlv.text(Tag.BATCH_COUNT, "ä"): "ä",
    ttlv.octets(Tag.BATCH_COUNT, b"\0"): b"\0",
    ttlv.date_time(Tag.BATCH_COUNT, 1): 1,
    ttlv.interval(Tag.BATCH_COUNT, 10): 10,
}


@pytest.mark.parametrize(("item", "value"), VALUES.items())
def test_a_value_of_each_type(item: bytes, value: object) -> None:
    (node,), mistake = read(item)
    assert (node.value, mistake) == (value, None)


def test_several_messages_of_a_stream() -> None:
    nodes, mistake = read(request() * 3)
    assert [node.tag for node in nodes] == [Tag.REQUEST_MESSAGE] * 3
    assert mistake is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x42\x00\x78", "byte 0: an item begins with 8 bytes of tag, type and length; 3 are left"),
        (b"HTTP/1.1", "byte 0: a tag begins with 42 or 54, not with 48"),
        (raw(Tag.BATCH_COUNT, 0x0F, 0, b""), "byte 3: 0F is no type; types are 01 to 0E"),
        (
            raw(Tag.BATCH_COUNT, ItemType.INTEGER, 8, bytes(8)),
            "byte 4: the length is 8, but that of a value of type Integer is 4",
        ),
        (
            raw(Tag.KEY_MATERIAL, ItemType.BIG_INTEGER, 5, bytes(8)),
            "byte 4: the length of a Big Integer is a multiple of 8, not 5",
        ),
        (
            ttlv.text(Tag.NAME, "abcdefgh")[:-1],
            "byte 4: the length is 8, but 7 bytes are left before the end of the bytes",
        ),
        (raw(Tag.NAME, ItemType.TEXT_STRING, 3, b"ab\xff"), "byte 10: the text is not UTF-8"),
    ],
)
def test_a_mistake_is_named_with_its_byte(data: bytes, words: str) -> None:
    assert words in str(read(data)[1])


def test_an_item_beyond_its_structure_names_the_structure() -> None:
    data = ttlv.structure(Tag.REQUEST_MESSAGE, ttlv.text(Tag.NAME, "abcdefgh")[:-1])
    assert "left before the end of its structure, which began at byte 0" in str(read(data)[1])


def test_a_message_that_is_cut_off_is_shown_up_to_there() -> None:
    message = request(get())
    (node,), mistake = read(message[:-3])
    assert node.items
    assert "byte 4: the length is" in str(mistake)


def test_the_items_before_a_mistake_are_shown() -> None:
    nodes, mistake = read(request() + b"garbage and more of it")
    assert len(nodes) == 1
    assert f"byte {len(request())}: " in str(mistake)


def test_depth_is_bounded() -> None:
    assert read(nested(MAX_DEPTH))[1] is None
    assert f"nested more than {MAX_DEPTH} deep" in str(read(nested(MAX_DEPTH + 2))[1])


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_end_in_a_tree_or_a_named_byte(garbage: bytes, position: int) -> None:
    message = request()
    for data in (garbage, message[:position] + garbage + message[position + len(garbage) :]):
        _, mistake = read(data)
        assert mistake is None or str(mistake).startswith("byte ")


def test_names_of_types() -> None:
    assert type_name(ItemType.DATE_TIME_EXTENDED) == "Date-Time Extended"
    assert repr(Node(Tag.NAME, ItemType.TEXT_STRING, 8, 3)) == "<Node 420053 TEXT_STRING at 8>"


def test_the_number_of_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.decoding.tree.MAX_ITEMS", 3)
    nodes, mistake = read(ttlv.structure(Tag.REQUEST_MESSAGE, *[ttlv.integer(Tag.BATCH_COUNT, 1)] * 9))
    assert len(nodes[0].items) == 2
    assert "more than 3 items" in str(mistake)
