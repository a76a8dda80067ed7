"""Permissions: every group against every operation, object types, batches, and the answers to refused requests."""

from collections.abc import Sequence

import pytest

from gateway.config import PolicyConfig
from gateway.config.values import GROUP_NAMES
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.groups import MADE_TYPES, TYPED, UNNAMED_TYPES
from gateway.kmip.messages import Request, ResponseItem, Version
from gateway.kmip.spec import ItemType, ObjectGroupMember, ObjectType, Operation, ResultReason, ResultStatus, Tag
from gateway.permissions import UNRESTRICTED, Denial, Permissions, refusal_frame
from tests.kit.operations import TABLE

VERSIONS: list[Version] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (3, 0)]
VENDORS = [0x80000001, 0xFFFFFFFF, 0x7FFF]
NEVER = {0x1B: "Notify", 0x1C: "Put", 0x32: "Set Endpoint Role", 0x35: "Re-Provision"}
UUID = ttlv.text(Tag.UNIQUE_IDENTIFIER, "uuid-1")
DENIED, NOT_SUPPORTED, FAILED = ResultReason.PERMISSION_DENIED, ResultReason.OPERATION_NOT_SUPPORTED, 0x100


def request(*asks: int | compose.Ask, version: Version = (1, 4)) -> Request:
    items = [ask if isinstance(ask, compose.Ask) else compose.Ask(ask, UUID) for ask in asks]
    return decode_request(compose.encode_request(version, items))


def typed(operation: int, *types: int, extra: bytes = b"") -> compose.Ask:
    payload = b"".join(ttlv.enumeration(Tag.OBJECT_TYPE, number) for number in types)
    return compose.Ask(operation, payload + extra)


def reasons(permissions: Permissions, *asks: int | compose.Ask, version: Version = (1, 4)) -> dict[int | None, int]:
    """Return the Result Reasons of a request's denials, by the position of the item."""
    return {denial.position: denial.reason for denial in permissions.denials(request(*asks, version=version))}


def policy(
    allow: str | Sequence[str] = "all",
    refuse: str | Sequence[str] = (),
    object_types: str | Sequence[str] = "all",
    max_batch_items: int = 0,
) -> Permissions:
    settings = {"allow": allow, "refuse": refuse, "object_types": object_types, "max_batch_items": max_batch_items}
    return Permissions(PolicyConfig.model_validate(settings))


# Operations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("group", GROUP_NAMES)
def test_an_allowed_group_lets_its_operations_pass_only(group: str, version: Version) -> None:
    permissions = policy(allow=group)
    for number, (_name, of) in TABLE.items():
        expected = {} if of == group else {0: NOT_SUPPORTED if number in NEVER or number == 0x34 else DENIED}
        assert reasons(permissions, number, version=version) == expected, number
    assert [reasons(permissions, number, version=version) for number in VENDORS] == [{0: DENIED}] * 3


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("group", GROUP_NAMES)
def test_a_refused_group_stops_its_operations_only(group: str, version: Version) -> None:
    permissions = policy(refuse=group)
    for number, (_name, of) in TABLE.items():
        expected = {0: DENIED} if of in {group, ""} else {}
        expected = {0: NOT_SUPPORTED} if number in NEVER or number == 0x34 else expected
        assert reasons(permissions, number, version=version) == expected, number
    assert [reasons(permissions, number, version=version) for number in VENDORS] == [{}] * 3


@pytest.mark.parametrize("number", TABLE, ids=lambda number: TABLE[number][0])
def test_an_operation_is_allowed_and_refused_by_its_name(number: int) -> None:
    name = TABLE[number][0]
    if number not in NEVER:
        only = policy(allow=name)
        assert [other for other in TABLE if not reasons(only, other)] == [number]
    assert number in policy().allowed() or number in NEVER or number == 0x34
    assert list(reasons(policy(refuse=name), number)) == [0]


@pytest.mark.parametrize("operation", NEVER, ids=NEVER.values())
def test_operations_that_harm_a_shared_session_are_not_forwarded(operation: int) -> None:
    assert reasons(UNRESTRICTED, operation) == {0: NOT_SUPPORTED}
    assert reasons(UNRESTRICTED, Operation.GET, operation, Operation.GET) == {1: NOT_SUPPORTED}
    assert operation not in policy(allow=[*GROUP_NAMES, "Interop", "PKCS#11"]).allowed()


def test_without_a_policy_all_other_operations_are_forwarded() -> None:
    others = [operation for operation in Operation if operation not in NEVER and operation != Operation.INTEROP]
    assert UNRESTRICTED.allowed() == sorted(others)
    assert [reasons(UNRESTRICTED, number) for number in [*others, *VENDORS]] == [{}] * (len(others) + 3)


def test_interop_is_forwarded_if_allow_names_it() -> None:
    assert reasons(UNRESTRICTED, Operation.INTEROP) == {0: NOT_SUPPORTED}
    assert reasons(policy(allow=["all", "Interop"]), Operation.INTEROP) == {}
    assert reasons(policy(allow="Interop"), Operation.GET) == {0: DENIED}


@pytest.mark.parametrize(
    "limited", [policy(allow=[*GROUP_NAMES]), policy(refuse="Destroy"), policy(object_types="Symmetric Key")], ids=repr
)
def test_pkcs11_carries_all_functions_and_needs_its_name(limited: Permissions) -> None:
    assert reasons(limited, Operation.PKCS_11) == {0: DENIED}
    assert reasons(policy(allow=["read", "PKCS#11"], refuse="Destroy"), Operation.PKCS_11) == {}


def test_refuse_is_stronger_than_an_allowed_group() -> None:
    permissions = policy(allow=["read", "create"], refuse=["Get", "Register"])
    assert [reasons(permissions, it) for it in (Operation.LOCATE, Operation.CREATE)] == [{}, {}]
    assert [reasons(permissions, it) for it in (Operation.GET, Operation.REGISTER)] == [{0: DENIED}] * 2


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_locate_of_a_fresh_object_needs_create(version: Version) -> None:
    def located(member: ObjectGroupMember) -> compose.Ask:
        return compose.Ask(Operation.LOCATE, ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, member))

    fresh, default = (located(member) for member in ObjectGroupMember)
    assert reasons(policy(allow="read"), fresh, version=version) == {0: DENIED}
    assert reasons(policy(allow="read"), default, version=version) == {}
    assert reasons(policy(allow=["read", "Create"]), fresh, version=version) == {}
    assert reasons(policy(object_types="Symmetric Key"), fresh, version=version) == {0: DENIED}
    assert reasons(policy(object_types="Symmetric Key"), default, version=version) == {}


# Object types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("operation", sorted(TYPED), ids=lambda operation: operation.name)
def test_the_object_type_of_a_request_must_be_allowed(operation: Operation, version: Version) -> None:
    permissions = policy(object_types=["Symmetric Key", "Secret Data"])
    for number in [*ObjectType, 0x63]:
        is_allowed = number in {ObjectType.SYMMETRIC_KEY, ObjectType.SECRET_DATA}
        expected = {} if is_allowed else {0: DENIED}
        assert reasons(permissions, typed(operation, number), version=version) == expected, number
    assert reasons(permissions, typed(operation), version=version) == {0: DENIED}


def test_a_second_object_type_must_be_allowed_too() -> None:
    permissions = policy(object_types="Symmetric Key")
    assert reasons(permissions, typed(Operation.CREATE, 2, 4)) == {0: DENIED}
    assert reasons(permissions, typed(Operation.CREATE, 2, 2)) == {}


@pytest.mark.parametrize(
    ("tag", "object_type"),
    [
        (Tag.CERTIFICATE, "Certificate"),
        (Tag.SYMMETRIC_KEY, "Symmetric Key"),
        (Tag.PUBLIC_KEY, "Public Key"),
        (Tag.PRIVATE_KEY, "Private Key"),
        (Tag.SPLIT_KEY, "Split Key"),
        (Tag.TEMPLATE, "Template"),
        (Tag.SECRET_DATA, "Secret Data"),
        (Tag.OPAQUE_OBJECT, "Opaque Object"),
        (Tag.PGP_KEY, "PGP Key"),
        (Tag.CERTIFICATE_REQUEST, "Certificate Request"),
    ],
)
def test_the_object_itself_counts_as_much_as_its_object_type(tag: Tag, object_type: str) -> None:
    hidden = typed(Operation.REGISTER, ObjectType.SYMMETRIC_KEY, extra=ttlv.structure(tag, b""))
    expected = {} if object_type == "Symmetric Key" else {0: DENIED}
    assert reasons(policy(object_types="Symmetric Key"), hidden) == expected
    assert reasons(policy(object_types=["Symmetric Key", object_type]), hidden) == {}


def test_an_object_type_that_cannot_be_read_is_refused() -> None:
    permissions = policy(object_types="Symmetric Key")
    as_integer = compose.Ask(Operation.CREATE, ttlv.integer(Tag.OBJECT_TYPE, 2))
    broken = compose.Ask(Operation.CREATE, ttlv.HEAD.pack(ttlv.word(Tag.NAME, ItemType.TEXT_STRING), 800))
    assert [reasons(permissions, ask) for ask in (as_integer, broken)] == [{0: DENIED}] * 2


@pytest.mark.parametrize("operation", MADE_TYPES, ids=lambda operation: Operation(operation).name)
def test_operations_without_an_object_type_make_known_types(operation: int) -> None:
    names = {ObjectType.SYMMETRIC_KEY: "Symmetric Key", ObjectType.PUBLIC_KEY: "Public Key"}
    names |= {ObjectType.PRIVATE_KEY: "Private Key", ObjectType.CERTIFICATE: "Certificate"}
    made = [names[ObjectType(number)] for number in MADE_TYPES[operation]]
    assert reasons(policy(object_types=made), operation) == {}
    assert reasons(policy(object_types=["Opaque Object", *made[1:]]), operation) == {0: DENIED}


@pytest.mark.parametrize("operation", sorted(UNNAMED_TYPES), ids=lambda operation: operation.name)
def test_object_types_refuse_operations_that_make_other_things(operation: Operation) -> None:
    assert reasons(policy(object_types=["Symmetric Key"]), operation) == {0: DENIED}
    assert reasons(policy(), operation) == {}


def test_object_types_do_not_limit_existing_objects() -> None:
    permissions = policy(object_types="Symmetric Key")
    existing = [Operation.GET, Operation.DESTROY, Operation.LOCATE, Operation.SIGN, Operation.ADD_ATTRIBUTE]
    assert [reasons(permissions, operation) for operation in existing] == [{}] * len(existing)


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_may_have_as_many_operations_as_the_policy_says() -> None:
    permissions = policy(max_batch_items=2)
    assert reasons(permissions, Operation.GET, Operation.GET) == {}
    assert reasons(permissions, *[Operation.GET] * 3) == {None: DENIED}
    assert reasons(policy(), *[Operation.GET] * 50) == {}


def test_every_refused_item_of_a_batch_is_found() -> None:
    permissions = policy(allow=["read", "Create"])
    found = reasons(permissions, Operation.CREATE, Operation.DESTROY, Operation.GET, Operation.PUT, Operation.REVOKE)
    assert found == {1: DENIED, 3: NOT_SUPPORTED, 4: DENIED}


# Answers --------------------------------------------------------------------------------------------------------------


def answered(permissions: Permissions, asked: Request) -> list[ResponseItem]:
    response = decode_response(refusal_frame(asked, permissions.denials(asked)))
    assert response.version == asked.version
    return response.items


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_refused_operation_alone_is_answered_permission_denied(version: Version) -> None:
    (item,) = answered(policy(allow="read"), request(Operation.DESTROY, version=version))
    assert (item.operation, item.status, item.reason) == (Operation.DESTROY, ResultStatus.OPERATION_FAILED, DENIED)
    assert item.message == ("Destroy is not permitted for this client by the policy of this gateway; ask its operator")


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_all_items_of_a_batch_are_answered_in_order_with_their_ids(version: Version) -> None:
    asks = [
        compose.Ask(operation, UUID, bytes([index]))
        for index, operation in enumerate([Operation.CREATE, Operation.DESTROY, Operation.GET])
    ]
    items = answered(policy(refuse="destroy"), request(*asks, version=version))

    assert [item.operation for item in items] == [ask.operation for ask in asks]
    assert [item.unique_batch_item_id for item in items] == [b"\0", b"\1", b"\2"]
    assert {item.status for item in items} == {ResultStatus.OPERATION_FAILED}
    assert [item.reason for item in items] == [FAILED, DENIED, FAILED]
    not_run = "not run: the gateway refused operation 2 of the batch, Destroy; nothing was changed"
    assert [items[0].message, items[2].message] == [not_run] * 2


def test_a_batch_that_is_too_long_is_answered_for_each_item() -> None:
    items = answered(policy(max_batch_items=1), request(Operation.GET, Operation.LOCATE))
    message = "the batch has 2 operations, and this client may send 1 in one request; send smaller batches"
    assert [(item.reason, item.message) for item in items] == [(DENIED, message)] * 2


@pytest.mark.parametrize(
    ("permissions", "ask", "detail"),
    [
        (policy(allow="read"), Operation.DESTROY, "Destroy: not in allow"),
        (policy(refuse="destroy"), Operation.DESTROY, 'Destroy: refuse has "destroy"'),
        (policy(refuse="Destroy"), Operation.DESTROY, 'Destroy: refuse has "Destroy"'),
        (policy(allow="read"), 0x80000001, "operation 0x80000001: an unknown operation is not in allow"),
        (policy(refuse="read"), Operation.PKCS_11, "PKCS#11: only allow by its own name forwards it"),
        (policy(), Operation.PUT, "Put is never forwarded"),
        (
            policy(object_types="Certificate"),
            typed(Operation.CREATE, 2),
            "Create of a Symmetric Key: not in object_types",
        ),
        (
            policy(object_types="Private Key"),
            Operation.CREATE_KEY_PAIR,
            "Create Key Pair: it makes a Public Key, not in object_types",
        ),
    ],
)
def test_the_detail_for_the_operator_names_the_setting(
    permissions: Permissions, ask: int | compose.Ask, detail: str
) -> None:
    (denial,) = permissions.denials(request(ask))
    assert isinstance(denial, Denial)
    assert denial.detail == detail
