"""Operations that give tickets and take them back: Login and Logout, since 2.0."""

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, Tag
from kmip_lab.keymanager.call import Call, Done, required
from kmip_lab.keymanager.numbers import TicketType


def login(call: Call) -> Done:
    """Login: a ticket that is valid here until Logout, for its owner, and gives no right that the certificate lacks."""
    value = call.local.tickets.add(call.owner, None)
    ticket = ttlv.enumeration(Tag.TICKET_TYPE, TicketType.LOGIN), ttlv.octets(Tag.TICKET_VALUE, value)
    return Done(ttlv.structure(Tag.TICKET, *ticket))


def logout(call: Call) -> Done:
    """Logout: the ticket is valid no more."""
    ticket = required(call.payload.structure(Tag.TICKET), "Ticket")
    required(ticket.number(Tag.TICKET_TYPE, ItemType.ENUMERATION), "Ticket Type")
    value = required(ticket.octets(Tag.TICKET_VALUE), "Ticket Value")
    call.local.tickets.find(value, call.owner)
    call.local.tickets.drop(value)
    return Done(b"")
