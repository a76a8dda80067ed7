"""Groups of operations, and the names of operations and object types, against the numbers of the specification."""

from pathlib import Path

import pytest

from gateway.decoding.names import Names
from gateway.kmip.groups import (
    GROUPS,
    OBJECT_TYPE_NAMES,
    OPERATION_NAMES,
    Group,
    spelled_object_type,
    spelled_operation,
)
from gateway.kmip.spec import ObjectType, Operation
from tests.kit.operations import TABLE

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"

#: Object types (1.4 section 9.1.3.2.12, 2.1 section 11.36).
TYPES = {
    1: "Certificate",
    2: "Symmetric Key",
    3: "Public Key",
    4: "Private Key",
    5: "Split Key",
    6: "Template",
    7: "Secret Data",
    8: "Opaque Object",
    9: "PGP Key",
    10: "Certificate Request",
}


def test_every_operation_has_its_name_and_one_group() -> None:
    assert set(Operation) == TABLE.keys() == GROUPS.keys()
    assert {number: (OPERATION_NAMES[number], GROUPS[number].value) for number in TABLE} == TABLE


def test_names_are_those_that_the_decoder_writes() -> None:
    names = Names()
    known = {number: name for number, name in OPERATION_NAMES.items() if number < Operation.CREATE_GROUP}
    assert {number: names.enumerated("Operation", number) for number in known} == known
    assert {number: names.enumerated("Object Type", number) for number in TYPES} == TYPES


def test_object_types_have_their_names() -> None:
    assert set(ObjectType) == TYPES.keys()
    assert OBJECT_TYPE_NAMES == TYPES


def test_unknown_numbers_are_written_in_hexadecimal() -> None:
    assert spelled_operation(0x80000001) == "operation 0x80000001"
    assert spelled_object_type(0x63) == "object type 0x00000063"


@pytest.mark.parametrize("group", [group for group in Group if group.value.isalpha()], ids=lambda group: group.value)
def test_the_table_in_the_documentation_lists_each_group(group: Group) -> None:
    row = next(line for line in SECURITY.read_text().splitlines() if line.startswith(f"| `{group.value}` |"))
    listed = row.split("|")[2].split(",")
    assert {name.strip() for name in listed} == {name for name, of in TABLE.values() if of == group.value}
