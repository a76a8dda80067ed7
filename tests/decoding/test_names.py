"""The tables of names, against the gateway's own numbers and against PyKMIP's."""

import re

import pytest
from kmip.core import enums

from gateway.decoding.names import Names, tag_identifier, value_identifier
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag

NAMES = Names()
SINCE_3_0 = {
    Operation.CREATE_GROUP,
    Operation.OBLITERATE,
    Operation.CREATE_USER,
    Operation.CREATE_CREDENTIAL,
    Operation.DEACTIVATE,
    ResultReason.CIRCULAR_LINK_ERROR,
}
#: PyKMIP's names that are not those of the specification.
OTHERWISE_IN_PYKMIP = {"DEFAULT", "RESERVED", "TRIPLE_DES", "OPAQUE_DATA", "SECP191K1"}


def letters(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", text.upper())


@pytest.mark.parametrize("tag", Tag)
def test_each_tag_of_the_gateway_has_its_name(tag: Tag) -> None:
    assert letters(NAMES.tag(tag) or "") == letters(tag.name)


@pytest.mark.parametrize(
    ("table", "value"),
    [
        *(("Operation", value) for value in Operation),
        *(("Result Reason", value) for value in ResultReason),
        *(("Object Type", value) for value in ObjectType),
    ],
)
def test_each_number_of_the_gateway_has_its_name(table: str, value: Operation) -> None:
    if value not in SINCE_3_0:
        assert letters(NAMES.enumerated(table, value) or "") == letters(value.name)


@pytest.mark.parametrize("tag", [tag for tag in enums.Tags if tag.name not in OTHERWISE_IN_PYKMIP])
def test_each_tag_of_pykmip_has_its_name(tag: enums.Tags) -> None:
    assert letters(NAMES.tag(tag.value) or "") == letters(tag.name)


@pytest.mark.parametrize(
    "table",
    [
        "Cryptographic Algorithm",
        "Hashing Algorithm",
        "Key Format Type",
        "Link Type",
        "Profile Name",
        "Recommended Curve",
        "Query Function",
    ],
)
def test_enumerations_of_pykmip_have_their_names(table: str) -> None:
    for member in getattr(enums, table.replace(" ", "")):
        if member.name not in OTHERWISE_IN_PYKMIP:
            assert letters(NAMES.enumerated(table, member.value) or "") == letters(member.name)


def test_masks_of_pykmip_have_their_names() -> None:
    for mask in enums.CryptographicUsageMask:
        (name,) = NAMES.bits("Cryptographic Usage Mask", mask.value) or []
        assert letters(name) == letters(mask.name)


def test_powers_in_names_are_those_of_the_specification() -> None:
    methods = [NAMES.enumerated("Split Key Method", value) for value in (2, 3, 4)]
    assert methods == ["Polynomial Sharing GF (2^16)", "Polynomial Sharing Prime Field", "Polynomial Sharing GF (2^8)"]


def test_a_bit_without_name_is_a_number() -> None:
    assert NAMES.bits("Cryptographic Usage Mask", 0x40000004) == ["Encrypt", "0x40000000"]
    assert NAMES.bits("Cryptographic Usage Mask", -(2**31)) == ["0x80000000"]


def test_what_is_no_mask_has_no_bits() -> None:
    assert NAMES.bits("Batch Count", 3) is None


def test_unknown_numbers_have_no_name() -> None:
    assert NAMES.tag(0x540001) is None
    assert NAMES.enumerated("Operation", 0x80000001) is None
    assert NAMES.enumerated("Batch Count", 1) is None


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("Template-Attribute", "TemplateAttribute"),
        ("IV/Counter/Nonce", "IVCounterNonce"),
        ("PKCS#11 Function", "PKCS11Function"),
    ],
)
def test_identifier_of_a_tag(name: str, identifier: str) -> None:
    assert tag_identifier(name) == identifier


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("Re-key Key Pair", "ReKeyKeyPair"),
        ("Pre-Active", "PreActive"),
        ("Polynomial Sharing GF (2^8)", "PolynomialSharingGF2_8"),
        ("SHA-1 with RSA Encryption", "SHA_1WithRSAEncryption"),
        ("Username and Password", "UsernameAndPassword"),
        ("SHA-256", "SHA_256"),
        ("HMAC-SHA256", "HMAC_SHA256"),
        ("X.509", "X_509"),
        ("PKCS#1", "PKCS_1"),
        ("3DES", "DES3"),
    ],
)
def test_identifier_of_an_enumerated_value(name: str, identifier: str) -> None:
    assert value_identifier(name) == identifier
