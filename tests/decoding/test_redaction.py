"""The values that may be secret are those that could hold a key, a password or anything unknown."""

import pytest

from gateway.decoding.names import Names
from gateway.decoding.redaction import is_secret
from gateway.decoding.tree import read
from gateway.kmip import ttlv
from gateway.kmip.spec import Tag
from tests.kit.messages import VENDOR_TAG

NAMES = Names()
PRIME_P = 0x420071
PASSWORD = 0x4200A1


@pytest.mark.parametrize(
    ("item", "secret"),
    [
        (ttlv.octets(Tag.KEY_MATERIAL, b"k"), True),
        (ttlv.octets(Tag.KEY_VALUE, b"k"), True),
        (ttlv.big_integer(PRIME_P, 7), True),
        (ttlv.text(PASSWORD, "p"), True),
        (ttlv.text(VENDOR_TAG, "p"), True),
        (ttlv.octets(VENDOR_TAG, b"p"), True),
        (ttlv.octets(Tag.KEY_MATERIAL, b""), False),
        (ttlv.octets(Tag.CERTIFICATE_VALUE, b"c"), False),
        (ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, b"c"), False),
        (ttlv.text(Tag.UNIQUE_IDENTIFIER, "1"), False),
        (ttlv.enumeration(Tag.OPERATION, 10), False),
        (ttlv.integer(VENDOR_TAG, 1), False),
    ],
)
def test_secrets(item: bytes, secret: bool) -> None:
    (node,), _ = read(item)
    assert is_secret(node, NAMES) is secret


def test_bytes_are_secret_unless_listed() -> None:
    secret = [tag for tag in range(0x420001, 0x420177) if is_secret(read(ttlv.octets(tag, b"k"))[0][0], NAMES)]
    assert {NAMES.tag(tag) for tag in secret} >= {"Key Material", "Data", "Password", "Ticket Value", "Salt", None}


@pytest.mark.parametrize("name", ["Key Material", "Secret Data", "D", "Password", "Data", "Credential Value"])
def test_a_secret_is_one_in_any_type(name: str) -> None:
    tag = next(tag for tag in range(0x420001, 0x420177) if NAMES.tag(tag) == name)
    for item in (ttlv.octets(tag, b"k"), ttlv.text(tag, "k"), ttlv.integer(tag, 7), ttlv.big_integer(tag, 7)):
        (node,), _ = read(item)
        assert is_secret(node, NAMES)


@pytest.mark.parametrize(
    ("attribute", "secret"),
    [("x-database-password", True), ("y-pin", True), (None, True), ("Contact Information", False)],
)
def test_the_text_of_a_custom_attribute_is_secret(attribute: str | None, secret: bool) -> None:
    (node,), _ = read(ttlv.text(Tag.ATTRIBUTE_VALUE, "p"))
    assert is_secret(node, NAMES, attribute) is secret
