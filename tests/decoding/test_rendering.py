"""A tree as text, JSON and XML: names of the specification, no secret, and all bytes of a message accounted for."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gateway.decoding.names import Names
from gateway.decoding.rendering import Renderer, xml_text
from gateway.decoding.tree import Node, read
from gateway.kmip import ttlv
from gateway.kmip.spec import Tag
from tests.kit.messages import VENDOR_TAG, get, request

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("re*/*.bin"))  # requests and responses
RENDERER = Renderer(Names())
OPEN = Renderer(Names(), secrets=True)
SECRET = b"\xc0\xff\xee\xba\xbe\x15\x5e\xc2"
MODULUS = 0x420052
USAGE_MASK = 0x42002C


def node(item: bytes) -> Node:
    (found,), mistake = read(item)
    assert mistake is None
    return found


def line(item: bytes, renderer: Renderer = RENDERER) -> str:
    (found,) = renderer.text(node(item))
    return found


def in_json(item: bytes) -> object:
    return json.loads(RENDERER.json(node(item)))


def in_xml(item: bytes) -> str:
    return ET.tostring(RENDERER.xml(node(item)), encoding="unicode")


@pytest.mark.parametrize(
    ("item", "text", "value", "xml"),
    [
        (ttlv.integer(Tag.BATCH_COUNT, -1), "Batch Count: -1  (Integer)", -1, "-1"),
        (ttlv.enumeration(Tag.OPERATION, 4), "Operation: Re-key (0x4)  (Enumeration)", "ReKey", "ReKey"),
        (ttlv.enumeration(Tag.OPERATION, 2**31), "Operation: 0x80000000  (Enumeration)", "0x80000000", "0x80000000"),
        (
            ttlv.integer(USAGE_MASK, 12),
            "Cryptographic Usage Mask: Encrypt, Decrypt (0xc)  (Integer)",
            "Encrypt|Decrypt",
            "Encrypt Decrypt",
        ),
        (ttlv.integer(USAGE_MASK, 0), "Cryptographic Usage Mask: none (0x0)  (Integer)", "", ""),
        (ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=True), "Batch Order Option: true  (Boolean)", True, "true"),
        (ttlv.text(Tag.UNIQUE_IDENTIFIER, "a\tb"), 'Unique Identifier: "a\\tb"  (Text String)', "a\tb", "a&#09;b"),
        (
            ttlv.date_time(Tag.TIME_STAMP, 86400),
            "Time Stamp: 1970-01-02T00:00:00+00:00  (Date-Time)",
            "1970-01-02T00:00:00+00:00",
            "1970-01-02T00:00:00+00:00",
        ),
        (
            ttlv.date_time(Tag.TIME_STAMP, -(2**63)),
            "Time Stamp: -9223372036854775808  (Date-Time)",
            "0x8000000000000000",
            "0x8000000000000000",
        ),
        (ttlv.long_integer(Tag.BATCH_COUNT, 5), "Batch Count: 5  (Long Integer)", 5, "5"),
        (
            ttlv.long_integer(Tag.BATCH_COUNT, -(2**60)),
            f"Batch Count: {-(2**60)}  (Long Integer)",
            "0xf000000000000000",
            str(-(2**60)),
        ),
        (ttlv.interval(Tag.LEASE_TIME, 9), "Lease Time: 9  (Interval)", 9, "9"),
        (ttlv.octets(Tag.DIGEST_VALUE, b"\xab"), "Digest Value: ab  (Byte String)", "ab", "ab"),
    ],
)
def test_a_value_in_each_form(item: bytes, text: str, value: object, xml: str) -> None:
    written = in_json(item)
    assert line(item) == text
    assert isinstance(written, dict)
    assert written["value"] == value
    assert f'value="{xml}"' in in_xml(item)


def test_a_big_integer_is_hexadecimal_in_json_and_xml() -> None:
    public_exponent = ttlv.big_integer(0x42006C, -2)
    assert json.loads(RENDERER.json(node(public_exponent)))["value"] == "0xfffffffffffffffe"
    assert 'value="fffffffffffffffe"' in in_xml(public_exponent)


def test_an_unknown_tag_is_written_as_a_number() -> None:
    item = ttlv.integer(VENDOR_TAG, 1)
    assert line(item) == "Tag 540001: 1  (Integer)"
    assert json.loads(RENDERER.json(node(item)))["tag"] == "0x540001"
    assert in_xml(item) == '<TTLV tag="0x540001" type="Integer" value="1" />'


def test_structures_are_nested_in_each_form() -> None:
    message = node(request(get("7")))
    assert list(RENDERER.text(message))[-2:] == ["    Request Payload", '      Unique Identifier: "7"  (Text String)']
    written = json.loads(RENDERER.json(message))
    assert written["value"][1]["value"][1]["value"][0] == {
        "tag": "UniqueIdentifier",
        "type": "TextString",
        "value": "7",
    }
    found = RENDERER.xml(message).find("BatchItem/RequestPayload/UniqueIdentifier")
    assert found is not None
    assert found.attrib == {"type": "TextString", "value": "7"}


def test_the_value_of_an_attribute_has_the_names_of_that_attribute() -> None:
    attribute = ttlv.structure(
        Tag.ATTRIBUTE,
        ttlv.text(Tag.ATTRIBUTE_NAME, "Cryptographic Algorithm"),
        ttlv.enumeration(Tag.ATTRIBUTE_VALUE, 3),
    )
    assert list(RENDERER.text(node(attribute)))[-1] == "  Attribute Value: AES (0x3)  (Enumeration)"


def test_a_secret_is_in_no_form_unless_asked_for() -> None:
    item = ttlv.octets(Tag.KEY_MATERIAL, SECRET)
    forms = [line(item), RENDERER.json(node(item)), in_xml(item)]
    assert not [form for form in forms if SECRET.hex() in form.lower()]
    assert line(item) == "Key Material: [redacted, 8 bytes]  (Byte String)"
    assert in_json(item) == {"tag": "KeyMaterial", "type": "ByteString", "value": None, "redacted": "8 bytes"}
    assert in_xml(item) == '<KeyMaterial type="ByteString" value="" redacted="8 bytes" />'
    assert line(item, OPEN) == f"Key Material: {SECRET.hex()}  (Byte String)"


def test_xml_replaces_characters_that_it_cannot_contain() -> None:
    assert "a\N{REPLACEMENT CHARACTER}b" in in_xml(ttlv.text(Tag.RESULT_MESSAGE, "a\x00b"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_each_message_of_the_corpus_is_rendered(path: Path) -> None:
    nodes, mistake = read(path.read_bytes())
    for root in nodes:
        items = 0
        waiting = [root]
        while waiting:
            each = waiting.pop()
            items += 1
            waiting += each.items
        assert len(list(OPEN.text(root))) == items
        assert OPEN.json(root).count('"tag"') >= items
        assert len(list(ET.fromstring(ET.tostring(OPEN.xml(root))).iter())) == items  # noqa: S314 - our own
    assert nodes or mistake is not None


def test_a_number_of_any_size_is_rendered() -> None:
    modulus = ttlv.big_integer(MODULUS, int.from_bytes(b"\x7f" * 4096))
    for renderer in (RENDERER, OPEN):
        assert f"0x{'7f' * 4096}" in line(modulus, renderer)


def test_a_terminal_obeys_no_character_of_a_value() -> None:
    item = ttlv.text(Tag.UNIQUE_IDENTIFIER, "\x1b[31m \x7f \x9b31m \u202e \u2028 \U000e0001 \u00e9")
    forms = [line(item), RENDERER.json(node(item)), xml_text(RENDERER.xml(node(item)))]
    for text in forms:
        assert text.replace("\n", "").isprintable()
        assert "\u00e9" in text
    assert json.loads(forms[1])["value"] == "\x1b[31m \x7f \x9b31m \u202e \u2028 \U000e0001 \u00e9"
    value = ET.fromstring(forms[2]).get("value")  # noqa: S314 - of this test
    assert value == "\ufffd[31m \x7f \x9b31m \u202e \u2028 \U000e0001 \u00e9"


def test_the_text_of_a_custom_attribute_is_in_no_form() -> None:
    name, value = ttlv.text(Tag.ATTRIBUTE_NAME, "x-password"), ttlv.text(Tag.ATTRIBUTE_VALUE, "hunter2")
    item = ttlv.structure(Tag.ATTRIBUTE, name, value)
    for text in ("\n".join(RENDERER.text(node(item))), RENDERER.json(node(item)), xml_text(RENDERER.xml(node(item)))):
        assert "x-password" in text
        assert "hunter2" not in text
