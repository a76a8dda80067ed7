"""Permissions: the operations, object types and batches that an identity is allowed.

Plain functions and tables; no I/O. The decision is made before a request is sent to a key manager, and for a batch as
a whole: if one item is refused, none runs. Most requests cost one lookup for each item, in ``Permissions.free``.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gateway.config import PolicyConfig
from gateway.config.values import ALL
from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.groups import (
    GROUPS,
    MADE_TYPES,
    OBJECT_TYPE_NAMES,
    OPERATION_NAMES,
    TYPED,
    TYPES_BY_TAG,
    UNNAMED_TYPES,
    Group,
    spelled_object_type,
    spelled_operation,
)
from gateway.kmip.messages import Request, RequestItem
from gateway.kmip.spec import ItemType, ObjectGroupMember, Operation, ResultReason, Tag

_TYPE_TAGS: Final = frozenset({int(Tag.OBJECT_TYPE), *TYPES_BY_TAG})
_NOT_FRESH: Final = (None, ObjectGroupMember.GROUP_MEMBER_DEFAULT)
_ASK: Final = "is not permitted for this client by the policy of this gateway; ask its operator"


class Denial(NamedTuple):
    """The reason for which an item of a request is refused.

    ``position`` is that of the item, from 0, or None if the whole batch is refused for its size. ``reason`` is a
    ResultReason, the same in all protocol versions. ``message`` is for the client, ``detail`` for the operator: it
    names the setting.
    """

    position: int | None
    operation: int
    reason: ResultReason
    message: str
    detail: str


class Permissions:
    """The policy of one identity, compiled from its table. A reload changes it in place, for all its clients at once.

    ``free`` holds the operations that are allowed whatever their payloads are; ``max_items`` is the most items of a
    batch.
    """

    __slots__ = ("_inspected", "_object_types", "_refused", "_refuses_unknown", "free", "max_items")

    free: frozenset[int]
    max_items: int

    def __init__(self, settings: PolicyConfig) -> None:
        self.change(settings)

    def __repr__(self) -> str:
        return f"<Permissions: {len(self.free)} operations free, {len(self._refused)} refused>"

    def change(self, settings: PolicyConfig) -> None:
        """Use the settings of a table from the next request on."""
        refused = {int(operation): why for operation in Operation if (why := _why_refused(operation, settings))}
        object_types = None
        if ALL not in settings.object_types:
            object_types = frozenset(
                number for number, name in OBJECT_TYPE_NAMES.items() if name in settings.object_types
            )
            for operation, made in MADE_TYPES.items():
                if others := made - object_types:
                    names = " and ".join(spelled_object_type(number) for number in sorted(others))
                    refused.setdefault(operation, f"it makes a {names}, not in object_types")
            for operation in UNNAMED_TYPES:
                refused.setdefault(operation, "object_types has no name for the objects that it makes")
        inspected = {*TYPED, Operation.LOCATE} if object_types is not None else set[int]()
        if Operation.CREATE in refused:
            inspected.add(Operation.LOCATE)
        self._refused = refused
        self._refuses_unknown = ALL not in settings.allow
        self._object_types = object_types
        self._inspected = frozenset(inspected - refused.keys())
        self.free = frozenset(int(operation) for operation in Operation).difference(refused, inspected)
        self.max_items = settings.max_batch_items or sys.maxsize

    def allowed(self) -> list[int]:
        """Return the numbers of the known operations that are allowed, at least with some payloads."""
        return sorted(self.free | self._inspected)

    def denials(self, request: Request) -> list[Denial]:
        """Return a denial for each item that is refused; a single denial for a batch that is too long."""
        items = request.items
        if len(items) > self.max_items:
            message = (
                f"the batch has {len(items)} operations, and this client may send {self.max_items} in one request; send"
                " smaller batches"
            )
            detail = f"batch of {len(items)} operations: max_batch_items = {self.max_items}"
            return [Denial(None, -1, ResultReason.PERMISSION_DENIED, message, detail)]
        free = self.free
        for item in items:
            if item.operation not in free:
                break
        else:
            return []
        return [
            denial
            for index, item in enumerate(items)
            if item.operation not in free and (denial := self._denial(index, item)) is not None
        ]

    def _denial(self, index: int, item: RequestItem) -> Denial | None:
        operation = item.operation
        name = spelled_operation(operation)
        if operation in _NEVER or (operation == Operation.INTEROP and operation in self._refused):
            message = f"this gateway does not forward {name}"
            return Denial(index, operation, ResultReason.OPERATION_NOT_SUPPORTED, message, f"{name} is never forwarded")
        why = self._refused.get(operation)
        if why is None and operation not in OPERATION_NAMES and self._refuses_unknown:
            why = "an unknown operation is not in allow"
        what = name
        if why is None and operation in self._inspected:
            found = self._inspect(item)
            what, why = (f"{name} {found[0]}", found[1]) if found is not None else (name, None)
        if why is None:
            return None
        return Denial(index, operation, ResultReason.PERMISSION_DENIED, f"{what} {_ASK}", f"{what}: {why}")

    def _inspect(self, item: RequestItem) -> tuple[str, str] | None:
        """Return what the payload of an item asks for and why this is refused, or None if it is allowed."""
        try:
            if item.operation == Operation.LOCATE:
                # "If a Fresh object is asked for and there is none, the server may make one" (1.4 section 4.9)
                is_fresh = item.object_group_member not in _NOT_FRESH
                why = "it may make an object, and the policy limits that (allow, refuse or object_types)"
                return ("of a fresh object", why) if is_fresh else None
            types = list(_object_types_of(item))
        except ProtocolError:
            return "with an unreadable payload", "its payload cannot be checked"
        if not types:
            return "without an Object Type", "object_types is set, and the request has none"
        wrong = next((number for number in types if number not in (self._object_types or ())), None)
        return None if wrong is None else (f"of a {spelled_object_type(wrong)}", "not in object_types")


_NEVER: Final = frozenset(operation for operation, group in GROUPS.items() if group is Group.NEVER)


def _why_refused(operation: int, settings: PolicyConfig) -> str | None:
    """Return why a policy refuses an operation whatever its payload is, or None."""
    group, name = GROUPS[operation], OPERATION_NAMES[operation]
    allow, refuse = settings.allow, settings.refuse
    for refused in (name, group.value):
        if refused in refuse:
            return f'refuse has "{refused}"'
    if group is Group.NEVER:
        return "never forwarded"
    if name in allow:
        return None
    if group is Group.BY_NAME:
        is_unlimited = ALL in allow and not refuse and ALL in settings.object_types
        if operation == Operation.PKCS_11 and is_unlimited:
            return None
        return "only allow by its own name forwards it"
    return None if ALL in allow or group.value in allow else "not in allow"


def _object_types_of(item: RequestItem) -> Iterator[int]:
    """Yield the object types that a payload names, and those of the objects in it. Raises ProtocolError.

    The server may go by either. A second Object Type counts, too: the server may read the second.
    """
    span = item.fields.get(Tag.REQUEST_PAYLOAD)
    if span is None:
        return
    for field in ttlv.walk(item.frame, *span, _TYPE_TAGS):
        if field.tag != Tag.OBJECT_TYPE:
            yield TYPES_BY_TAG[field.tag]
        elif field.type != ItemType.ENUMERATION:
            raise ProtocolError("Object Type has a wrong type")
        else:
            yield int.from_bytes(item.frame[field.start : field.end], "big")


def refusal_frame(request: Request, denials: Sequence[Denial]) -> bytes:
    """Encode the answer to a request with denials: an error for every item, since none of them ran.

    Clients show the error of an item, often of the first: items that are not refused themselves say which item is.
    """
    first = denials[0]
    if first.position is None:
        return compose.failure(request, first.reason, first.message)
    name = spelled_operation(first.operation)
    not_run = (
        ResultReason.GENERAL_FAILURE,
        f"not run: the gateway refused operation {first.position + 1} of the batch, {name}; nothing was changed",
    )
    errors: list[tuple[int, str]] = [not_run] * len(request.items)
    for denial in denials:
        if denial.position is not None:
            errors[denial.position] = (denial.reason, denial.message)
    return compose.failures(request, errors)


#: The permissions of an identity without a policy.
UNRESTRICTED: Final = Permissions(PolicyConfig())
