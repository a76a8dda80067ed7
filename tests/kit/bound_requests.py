"""Requests that only one key manager can answer: asynchronous operations, their Polls and Cancels, and tickets."""

from typing import Final

from kmip_lab.tools.requests import create_key

from gateway.kmip import compose, ttlv
from gateway.kmip.binding import given
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import CredentialType, Operation, Tag

#: Locate all symmetric keys.
LISTED: Final = compose.Ask(Operation.LOCATE, ttlv.enumeration(Tag.OBJECT_TYPE, 2))
LOGIN: Final = compose.encode_request((2, 1), [compose.Ask(Operation.LOGIN)])


def later(version: Version, what: compose.Ask = LISTED) -> bytes:
    """Return an asynchronous request: by default, a Locate of all keys."""
    indicator = ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True)
    if version >= (2, 0):
        indicator = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 1)
    return compose.encode_request(version, [what], header=[indicator])


def making_a_key() -> compose.Ask:
    """Return the item of a Create."""
    item = decode_request(create_key()).items[0]
    return compose.Ask(item.operation, item.frame[slice(*item.fields[Tag.REQUEST_PAYLOAD])])


def about(operation: int, value: bytes, version: Version) -> bytes:
    """Return a Poll or a Cancel of a correlation value."""
    payload = ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, value)
    return compose.encode_request(version, [compose.Ask(operation, payload)])


def ticket_in(response: Response) -> bytes:
    """Return the ticket in the answer to LOGIN."""
    (bound,) = given(response, decode_request(LOGIN))
    return bytes(response.frame[bound.start : bound.end])


def with_ticket(ticket: bytes) -> bytes:
    """Return a Locate with the ticket of a Login."""
    credential = ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.TICKET),
        ttlv.structure(
            Tag.CREDENTIAL_VALUE,
            ttlv.structure(Tag.TICKET, ttlv.enumeration(Tag.TICKET_TYPE, 1), ttlv.octets(Tag.TICKET_VALUE, ticket)),
        ),
    )
    return compose.encode_request((2, 1), [LISTED], header=[ttlv.structure(Tag.AUTHENTICATION, credential)])
