"""Operations that move an object through its states: Activate, Revoke, Destroy (1.4 section 3.22)."""

from dataclasses import replace
from enum import Enum, auto
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.spec import ItemType, ResultReason, Tag
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.call import Call, Done, identified, required
from kmip_lab.keymanager.numbers import RevocationReasonCode, State
from kmip_lab.keymanager.objects import Attribute, ManagedObject
from kmip_lab.keymanager.refusals import Refusal


class Event(Enum):
    """What happens to an object, in words that fit after "can't be"."""

    ACTIVATED = auto()
    REVOKED = auto()
    COMPROMISED = auto()
    DESTROYED = auto()


#: Where each event leads (1.4 section 3.22, figure 1); it can't happen in a state that is not here.
_TRANSITIONS: Final = {
    Event.ACTIVATED: {State.PRE_ACTIVE: State.ACTIVE},
    Event.REVOKED: {State.ACTIVE: State.DEACTIVATED},
    Event.COMPROMISED: {
        State.PRE_ACTIVE: State.COMPROMISED,
        State.ACTIVE: State.COMPROMISED,
        State.DEACTIVATED: State.COMPROMISED,
        State.DESTROYED: State.DESTROYED_COMPROMISED,
    },
    Event.DESTROYED: {
        State.PRE_ACTIVE: State.DESTROYED,
        State.DEACTIVATED: State.DESTROYED,
        State.COMPROMISED: State.DESTROYED_COMPROMISED,
    },
}
_COMPROMISES: Final = frozenset({RevocationReasonCode.KEY_COMPROMISE, RevocationReasonCode.CA_COMPROMISE})


def activate(call: Call) -> Done:
    """Activate (1.4 section 4.19)."""
    found = call.living()
    call.save(_moved(found, Event.ACTIVATED), attributes.of_number("Activation Date", call.now))
    return identified(found)


def revoke(call: Call) -> Done:
    """Revoke (1.4 section 4.20): for a compromise from any state, for other reasons from Active only."""
    found = call.named()
    reason = required(call.payload.structure(Tag.REVOCATION_REASON), "Revocation Reason")
    code = required(reason.enumeration(Tag.REVOCATION_REASON_CODE), "Revocation Reason Code")
    compromised = code in _COMPROMISES
    moved = _moved(found, Event.COMPROMISED if compromised else Event.REVOKED)
    text = reason.text(Tag.REVOCATION_MESSAGE)
    message = b"" if text is None else ttlv.text(Tag.REVOCATION_MESSAGE, text)
    new = [
        attributes.of_structure("Revocation Reason", ttlv.enumeration(Tag.REVOCATION_REASON_CODE, code), message),
        attributes.of_number("Compromise Date" if compromised else "Deactivation Date", call.now),
    ]
    if compromised:
        new.append(_occurrence(call))
    call.save(moved, *new)
    return identified(found)


def _occurrence(call: Call) -> Attribute:
    """Since when the key may be known to others; now, where the client does not say."""
    date = call.payload.number(Tag.COMPROMISE_OCCURRENCE_DATE, ItemType.DATE_TIME)
    return attributes.of_number("Compromise Occurrence Date", call.now if date is None else date)


def destroy(call: Call) -> Done:
    """Destroy (1.4 section 4.21): the key material goes, the attributes stay. An active object can't be destroyed."""
    found = call.living()
    moved = found if found.state is None else _moved(found, Event.DESTROYED)
    call.save(replace(moved, material=None), attributes.of_number("Destroy Date", call.now))
    return identified(found)


def _moved(found: ManagedObject, event: Event) -> ManagedObject:
    if found.state is None:
        raise Refusal(ResultReason.ILLEGAL_OPERATION, "this object has no state")
    state = State(found.state)
    after = _TRANSITIONS[event].get(state)
    if after is None:
        words = state.name.lower().replace("_", "-")
        raise Refusal(
            ResultReason.WRONG_KEY_LIFECYCLE_STATE, f"an object that is {words} can't be {event.name.lower()}"
        )
    return replace(found, state=after)
