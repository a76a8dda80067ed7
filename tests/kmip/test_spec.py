"""The numbers, compared with a second source: PyKMIP, and the specification's tables for newer numbers."""

from enum import Enum, IntEnum

import pytest
from kmip.core import enums, primitives
from kmip.core.utils import BytearrayStream

from gateway.kmip import spec

#: Members with another name in PyKMIP: its name for our member.
OTHER_NAMES: dict[tuple[type[IntEnum], str], str] = {
    (spec.ObjectType, "OPAQUE_OBJECT"): "OPAQUE_DATA",
}

#: Numbers that PyKMIP does not know, from the tables of 2.1 section 11 and of 3.0.
NEWER: dict[type[IntEnum], dict[str, int]] = {
    spec.ItemType: {"DATE_TIME_EXTENDED": 0x0B, "IDENTIFIER": 0x0C, "REFERENCE": 0x0D, "NAME_REFERENCE": 0x0E},
    spec.Operation: {
        "SET_DEFAULTS": 0x36,
        "SET_CONSTRAINTS": 0x37,
        "GET_CONSTRAINTS": 0x38,
        "QUERY_ASYNCHRONOUS_REQUESTS": 0x39,
        "PROCESS": 0x3A,
        "PING": 0x3B,
        "CREATE_GROUP": 0x3C,
        "OBLITERATE": 0x3D,
        "CREATE_USER": 0x3E,
        "CREATE_CREDENTIAL": 0x3F,
        "DEACTIVATE": 0x40,
    },
    spec.ResultReason: {
        "PRIVATE_PROTECTION_STORAGE_UNAVAILABLE": 0x48,
        "PUBLIC_PROTECTION_STORAGE_UNAVAILABLE": 0x49,
        "UNKNOWN_OBJECT_GROUP": 0x4A,
        "CONSTRAINT_VIOLATION": 0x4B,
        "DUPLICATE_PROCESS_REQUEST": 0x4C,
        "CIRCULAR_LINK_ERROR": 0x4D,
    },
    spec.CredentialType: {"PASSWORD": 0x7, "CERTIFICATE": 0x8},
}

PAIRS: dict[type[IntEnum], type[Enum]] = {
    spec.ItemType: enums.Types,
    spec.Tag: enums.Tags,
    spec.Operation: enums.Operation,
    spec.ResultStatus: enums.ResultStatus,
    spec.ResultReason: enums.ResultReason,
    spec.CredentialType: enums.CredentialType,
    spec.ObjectType: enums.ObjectType,
    spec.ObjectGroupMember: enums.ObjectGroupMember,
    spec.BatchErrorContinuationOption: enums.BatchErrorContinuationOption,
    spec.AsynchronousIndicator: enums.AsynchronousIndicator,
}
pairs = pytest.mark.parametrize(("ours", "theirs"), PAIRS.items(), ids=lambda kind: kind.__name__)


def plain(name: str) -> str:
    return "".join(character for character in name.upper() if character.isalnum())


@pairs
def test_every_number_has_a_second_source(ours: type[IntEnum], theirs: type[Enum]) -> None:
    second = {plain(name): member.value for name, member in theirs.__members__.items()}
    second |= {plain(name): number for name, number in NEWER.get(ours, {}).items()}

    for member in ours:
        name = OTHER_NAMES.get((ours, member.name), member.name)
        assert second.get(plain(name)) == member.value, f"{ours.__name__}.{member.name}"


@pairs
def test_no_number_is_missing(ours: type[IntEnum], theirs: type[Enum]) -> None:
    """Except tags: the gateway needs few of them."""
    known = {member.value for member in theirs if member.name != "DEFAULT"} | set(NEWER.get(ours, {}).values())

    if ours is not spec.Tag:
        assert known == {int(member) for member in ours}
    assert len({int(member) for member in ours}) == len(ours.__members__), "two names for one number"


def test_operations_run_without_a_gap_to_the_last_of_3_0() -> None:
    assert sorted(spec.Operation) == list(range(0x01, 0x41))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (spec.ItemType.INTEGER, primitives.Integer(1)),
        (spec.ItemType.LONG_INTEGER, primitives.LongInteger(1)),
        (spec.ItemType.ENUMERATION, primitives.Enumeration(enums.ObjectType, enums.ObjectType.SYMMETRIC_KEY)),
        (spec.ItemType.BOOLEAN, primitives.Boolean(value=True)),
        (spec.ItemType.DATE_TIME, primitives.DateTime(1)),
        (spec.ItemType.INTERVAL, primitives.Interval(1)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_fixed_lengths_are_those_that_pykmip_writes(kind: spec.ItemType, value: primitives.Base) -> None:
    stream = BytearrayStream()
    value.write(stream)

    assert stream.buffer[3] == kind
    assert int.from_bytes(stream.buffer[4:8], "big") == spec.FIXED_LENGTH[kind]


def test_no_other_type_but_the_extended_date_has_a_fixed_length() -> None:
    """2.1 section 10.1: microseconds, in eight bytes."""
    compared = {"INTEGER", "LONG_INTEGER", "ENUMERATION", "BOOLEAN", "DATE_TIME", "INTERVAL"}

    assert {spec.ItemType(kind).name for kind in spec.FIXED_LENGTH} == compared | {"DATE_TIME_EXTENDED"}
    assert spec.FIXED_LENGTH[spec.ItemType.DATE_TIME_EXTENDED] == 8
