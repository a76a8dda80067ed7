"""Query, Discover Versions, Login and Logout."""

from kmip_lab.keymanager import Store
from kmip_lab.keymanager.engine import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import CredentialType, ObjectType, Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    VERSIONS,
    EngineClient,
    assert_failed,
)


def test_query_returns_the_requested_functions(client: EngineClient) -> None:
    operations, objects, server = (ttlv.enumeration(Tag.QUERY_FUNCTION, asked) for asked in (1, 2, 3))
    returned = client.ask(Operation.QUERY, operations, objects, server).payload
    supported = {node.as_number() for node in returned.find_all(Tag.OPERATION)}
    assert {Operation.CREATE, Operation.GET, Operation.QUERY} <= supported
    assert (Operation.SET_ATTRIBUTE in supported) == (client.version >= (2, 0))
    assert ObjectType.CERTIFICATE in {node.as_number() for node in returned.find_all(Tag.OBJECT_TYPE)}
    assert "not for production" in (returned.text(Tag.VENDOR_IDENTIFICATION) or "")
    information = returned.structure(Tag.SERVER_INFORMATION)
    assert information is not None
    assert information.text(Tag.SERVER_NAME) == "atlanta-001"
    assert client.ask(Operation.QUERY, objects).payload.find(Tag.OPERATION) is None


def version_item(version: tuple[int, int]) -> bytes:
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )


def test_discover_versions_returns_the_common_versions(client: EngineClient) -> None:
    answer = client.ask(Operation.DISCOVER_VERSIONS)
    if client.version == (1, 0):  # Discover Versions came with 1.1
        assert_failed(answer, ResultReason.OPERATION_NOT_SUPPORTED)
        return
    assert [node.encoded for node in answer.payload.children] == [version_item(each) for each in VERSIONS[::-1]]
    some = client.ask(Operation.DISCOVER_VERSIONS, *map(version_item, [(1, 2), (9, 9), (2, 0)]))
    assert [node.encoded for node in some.payload.children] == [version_item((2, 0)), version_item((1, 2))]


# Login and Logout -----------------------------------------------------------------------------------------------------


def authentication(ticket: bytes) -> bytes:
    return ttlv.structure(
        Tag.AUTHENTICATION,
        ttlv.structure(
            Tag.CREDENTIAL,
            ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.TICKET),
            ttlv.structure(Tag.CREDENTIAL_VALUE, ticket),
        ),
    )


def login(client: EngineClient) -> bytes:
    answer = client.ask(Operation.LOGIN)
    assert answer.ok
    ticket = answer.payload.structure(Tag.TICKET)
    assert ticket is not None
    assert ticket.enumeration(Tag.TICKET_TYPE) == 1
    return ticket.encoded


def test_a_ticket_is_valid_for_its_owner_until_logout(client_2_1: EngineClient) -> None:
    ticket = login(client_2_1)
    assert client_2_1.ask(Operation.LOCATE, header=[authentication(ticket)]).ok
    bob = EngineClient(client_2_1.engine, (2, 1), owner="bob")
    assert_failed(bob.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)
    assert_failed(bob.ask(Operation.LOGOUT, ticket), ResultReason.INVALID_TICKET)
    assert client_2_1.ask(Operation.LOGOUT, ticket).ok
    assert_failed(client_2_1.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)
    assert_failed(client_2_1.ask(Operation.LOGOUT, ticket), ResultReason.INVALID_TICKET)


def test_a_ticket_is_valid_at_its_key_manager_only(client_2_1: EngineClient, store: Store) -> None:
    ticket = login(client_2_1)
    london = EngineClient(Engine("london-001", store), (2, 1))
    assert london.ask(Operation.LOCATE).ok
    assert_failed(london.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)


def test_1_x_has_no_login(client_1_2: EngineClient) -> None:
    assert_failed(client_1_2.ask(Operation.LOGIN), ResultReason.OPERATION_NOT_SUPPORTED)


def test_logout_without_a_complete_ticket_fails(client_2_1: EngineClient) -> None:
    assert_failed(client_2_1.ask(Operation.LOGOUT), ResultReason.MISSING_DATA)
    half = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1))
    assert_failed(client_2_1.ask(Operation.LOGOUT, half), ResultReason.MISSING_DATA)
