"""Login and Logout: tickets of one key manager."""

from kmip_lab.keymanager import Store
from kmip_lab.keymanager.batch import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import CredentialType, Operation, ResultReason, Tag
from lab.tests.talk import Talk, refused


def authentication(ticket: bytes) -> bytes:
    return ttlv.structure(
        Tag.AUTHENTICATION,
        ttlv.structure(
            Tag.CREDENTIAL,
            ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.TICKET),
            ttlv.structure(Tag.CREDENTIAL_VALUE, ticket),
        ),
    )


def login(talk: Talk) -> bytes:
    answer = talk.ask(Operation.LOGIN)
    assert answer.ok
    ticket = answer.payload.structure(Tag.TICKET)
    assert ticket is not None
    assert ticket.enumeration(Tag.TICKET_TYPE) == 1
    return ticket.encoded


def test_a_ticket_is_valid_for_its_owner_until_logout(modern: Talk) -> None:
    ticket = login(modern)
    assert modern.ask(Operation.LOCATE, header=[authentication(ticket)]).ok
    bob = Talk(modern.engine, (2, 1), owner="bob")
    refused(bob.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)
    refused(bob.ask(Operation.LOGOUT, ticket), ResultReason.INVALID_TICKET)
    assert modern.ask(Operation.LOGOUT, ticket).ok
    refused(modern.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)
    refused(modern.ask(Operation.LOGOUT, ticket), ResultReason.INVALID_TICKET)


def test_a_ticket_is_valid_at_its_key_manager_only(modern: Talk, store: Store) -> None:
    ticket = login(modern)
    london = Talk(Engine("london-001", store), (2, 1))
    assert london.ask(Operation.LOCATE).ok
    refused(london.ask(Operation.LOCATE, header=[authentication(ticket)]), ResultReason.INVALID_TICKET)


def test_there_are_no_tickets_in_1_x(classic: Talk) -> None:
    refused(classic.ask(Operation.LOGIN), ResultReason.OPERATION_NOT_SUPPORTED)


def test_what_is_no_ticket(modern: Talk) -> None:
    refused(modern.ask(Operation.LOGOUT), ResultReason.MISSING_DATA)
    half = ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1))
    refused(modern.ask(Operation.LOGOUT, half), ResultReason.MISSING_DATA)
