"""Payloads read whole, and the Result Reasons of failures in 1.x and 2.x."""

import pytest
from kmip_lab.keymanager.protocol import Node, OperationFailed, encode_item

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ResultReason, Tag

PAYLOAD = ttlv.structure(
    Tag.REQUEST_PAYLOAD,
    ttlv.text(Tag.UNIQUE_IDENTIFIER, "first"),
    ttlv.text(Tag.UNIQUE_IDENTIFIER, "second"),
    ttlv.enumeration(Tag.OBJECT_TYPE, 0xFFFFFFFF),
    ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, -1),
    ttlv.boolean(Tag.FRESH, True),
    ttlv.octets(Tag.DATA, b"data"),
    ttlv.structure(Tag.NAME, ttlv.text(Tag.NAME_VALUE, "name")),
)


def test_children_are_found_by_tag_and_type() -> None:
    node = Node.of(PAYLOAD)
    assert node.encoded == PAYLOAD
    assert node.text(Tag.UNIQUE_IDENTIFIER) == "first"
    assert [child.as_text() for child in node.find_all(Tag.UNIQUE_IDENTIFIER)] == ["first", "second"]
    assert node.enumeration(Tag.OBJECT_TYPE) == 0xFFFFFFFF
    assert node.integer(Tag.CRYPTOGRAPHIC_LENGTH) == -1
    assert node.flag(Tag.FRESH)
    assert node.octets(Tag.DATA) == b"data"
    name = node.structure(Tag.NAME)
    assert name is not None
    assert name.text(Tag.NAME_VALUE) == "name"


def test_a_missing_child_is_none_or_false() -> None:
    node = Node.of(ttlv.structure(Tag.REQUEST_PAYLOAD))
    for find in (node.find, node.structure, node.text, node.octets, node.integer, node.enumeration):
        assert find(Tag.NAME) is None
    assert node.flag(Tag.FRESH) is False


def test_a_child_of_another_type_is_an_error() -> None:
    node = Node.of(PAYLOAD)
    with pytest.raises(ProtocolError, match="not INTEGER"):
        node.integer(Tag.UNIQUE_IDENTIFIER)
    with pytest.raises(ProtocolError, match="not TEXT_STRING"):
        node.text(Tag.DATA)


@pytest.mark.parametrize("encoded", [b"", PAYLOAD[:-1], PAYLOAD[:4]], ids=["empty", "cut", "no header"])
def test_a_malformed_encoding_is_an_error(encoded: bytes) -> None:
    with pytest.raises(ProtocolError):
        Node.of(encoded)


def test_text_must_be_utf_8_and_loses_trailing_zeros() -> None:
    text = Node.of(encode_item(Tag.NAME_VALUE, ItemType.TEXT_STRING, b"name\0\0"))
    assert text.as_text() == "name"
    with pytest.raises(ProtocolError, match="not UTF-8"):
        Node.of(encode_item(Tag.NAME_VALUE, ItemType.TEXT_STRING, b"\xff")).as_text()


def test_a_failure_has_the_result_reason_of_its_version() -> None:
    failure = OperationFailed(ResultReason.OBJECT_NOT_FOUND, "there is no object 1")
    assert failure.reason_in((2, 1)) == ResultReason.OBJECT_NOT_FOUND
    assert failure.reason_in((1, 4)) == ResultReason.ITEM_NOT_FOUND
    assert OperationFailed(ResultReason.MISSING_DATA, "missing").reason_in((1, 0)) == ResultReason.MISSING_DATA
