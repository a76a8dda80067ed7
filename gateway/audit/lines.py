"""Lines: the members of the audit trail's lines, as JSON. Only what stands here can get into the trail.

Nothing of a payload but Unique Identifiers is read, and of a header only the Client Correlation Value: no key, no
password. The texts of peers are cut and escaped, and lists of identifiers are cut, too.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from gateway.errors import ProtocolError
from gateway.identity import Principal
from gateway.kmip import ttlv
from gateway.kmip.answers import REPEATING, paired
from gateway.kmip.messages import (
    UNIQUE_IDENTIFIERS,
    Request,
    RequestItem,
    Response,
    ResponseItem,
    operation_name,
    reason_name,
)
from gateway.kmip.spec import ItemType, Operation, ResultStatus, Tag

LONGEST: Final = 256  # characters of an identifier or another text of a peer
MOST_IDENTIFIERS: Final = 100  # of one operation, in the request and in the answer
_LONGEST_NAME: Final = 1024  # characters of a name out of a certificate

# To look up a member of an enumeration is slow, and every line needs these.
_REQUEST_PAYLOAD: Final = int(Tag.REQUEST_PAYLOAD)
_RESPONSE_PAYLOAD: Final = int(Tag.RESPONSE_PAYLOAD)
_RESULT_STATUS: Final = int(Tag.RESULT_STATUS)
_RESULT_REASON: Final = int(Tag.RESULT_REASON)
_TEXT_STRING: Final = int(ItemType.TEXT_STRING)
_TEXT_WORD: Final = ttlv.word(Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING)
_SIZE: Final = ttlv.HEADER_SIZE
_unpack_head = ttlv.HEAD.unpack_from
_REPEATING: Final = frozenset(map(int, REPEATING))

_OPERATIONS: Final = {int(operation): f'{{"operation":"{operation_name(operation)}"' for operation in Operation}
_STATUSES: Final = {
    bytes((0, 0, 0, status)): f',"status":"{name}"'
    for status, name in (
        (ResultStatus.SUCCESS, "Success"),
        (ResultStatus.OPERATION_FAILED, "OperationFailed"),
        (ResultStatus.OPERATION_PENDING, "OperationPending"),
        (ResultStatus.OPERATION_UNDONE, "OperationUndone"),
    )
}
_SUCCESS_VALUE: Final = bytes(4)
_FAILED: Final = ',"status":"OperationFailed"'
_SUCCESS: Final = ',"status":"Success"'


def text(value: str, longest: int = LONGEST) -> str:
    """Return a text as JSON, in ASCII, cut to so many characters."""
    return encode_basestring_ascii(value if len(value) <= longest else f"{value[:longest]}...")


def value_text(value: bytes) -> str:
    """Return a value of a message as JSON: a text if it is printable, else its bytes as ``0x`` and digits."""
    try:
        found = value.decode()
        if found.isprintable():
            return text(found)
    except UnicodeDecodeError:
        pass
    return text(f"0x{value[:LONGEST].hex()}")


def members(fields: Mapping[str, Any]) -> str:
    """Return the members of an object as JSON, without its braces; all texts in it are cut."""
    return json.dumps({key: _cut(value) for key, value in fields.items()}, separators=(",", ":"))[1:-1]


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_NAME else f"{value[:_LONGEST_NAME]}..."
    if isinstance(value, Mapping):
        return {str(key)[:LONGEST]: _cut(each) for key, each in islice(value.items(), MOST_IDENTIFIERS)}
    if isinstance(value, Sequence):
        return [_cut(each) for each in value[:MOST_IDENTIFIERS]]
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)[:_LONGEST_NAME]


def client_fields(listener: str, client: str, fingerprint: str | None, principal: Principal | None) -> str:
    """Return the members about a client that are the same for all its requests."""
    return members(
        {
            "listener": listener,
            "client": client,
            "certificate": fingerprint,
            "identity": None if principal is None else principal.identity.name,
            "issuer": None if principal is None else principal.issuer,
            "subject": None if principal is None else principal.subject,
        }
    )


def request_fields(request: Request) -> str:
    """Return the members for the version and the Client Correlation Value of a request."""
    version = request.version
    value = request.client_correlation_value if Tag.CLIENT_CORRELATION_VALUE in request.fields else None
    correlation = "" if value is None else f',"correlation":{value_text(value.rstrip(bytes(1)))}'
    return f'"version":"{version[0]}.{version[1]}"{correlation}'


def asked_items(request: Request) -> str:
    """Return the operations of a request, without results."""
    return ",".join(f"{_asked(item)}}}" for item in request.items)


def refused_items(request: Request, reason: int) -> str:
    """Return the operations of a request that the gateway itself answered with an error."""
    result = f"{_FAILED}{_reason(reason)}}}"
    return ",".join(f"{_asked(item)}{result}" for item in request.items)


def served_items(request: Request) -> str:
    """Return the operations of a request that the gateway itself answered with success."""
    return ",".join(f"{_asked(item)}{_SUCCESS}}}" for item in request.items)


def answered_items(request: Request, response: Response) -> str:
    """Return the operations of a request, with their results; an operation without an answer has no result."""
    if len(request.items) == len(response.items) == 1:
        asked = _asked(request.items[0])
        return f"{asked}{_result(asked, request.items[0], response.items[0])}}}"
    pairs = paired(response, request) or {}
    found = []
    for position, item in enumerate(request.items):
        asked, answer = _asked(item), pairs.get(position)
        found.append(f"{asked}{'' if answer is None else _result(asked, item, answer)}}}")
    return ",".join(found)


def only_identifier(item: RequestItem) -> str | None:
    """Return the identifier of a payload that holds nothing else, as JSON; None for any other payload."""
    span = item.fields.get(_REQUEST_PAYLOAD)
    if span is not None:
        start, end = span
        if end - start > _SIZE:
            word, length = _unpack_head(item.frame, start)
            stop = start + _SIZE + length
            if word == _TEXT_WORD and stop <= end <= stop + 7:
                return value_text(item.frame[start + _SIZE : stop].rstrip(b"\0"))
    return None


def is_plain_success(response: Response, operation: int) -> bool:
    """Return True for the success of a single operation whose answer repeats the identifier of its request."""
    if len(response.items) != 1 or operation not in _REPEATING:
        return False
    item = response.items[0]
    start, end = item.fields[_RESULT_STATUS]
    return item.frame[start:end] == _SUCCESS_VALUE


def _asked(item: RequestItem) -> str:
    """Return the members for the operation of an item and the identifiers in its payload, without the last brace."""
    operation = _OPERATIONS.get(item.operation) or f'{{"operation":"0x{item.operation:x}"'
    span = item.fields.get(_REQUEST_PAYLOAD)
    if span is None:
        return operation
    identifier = only_identifier(item)
    if identifier is not None:
        return f'{operation},"ids":[{identifier}]'
    return f"{operation}{_identifiers(item, span, 'ids')}"


def _result(asked: str, question: RequestItem, item: ResponseItem) -> str:
    """Return the members for the result of an operation, and for identifiers that its request does not name.

    ``asked`` are the members for the request: no text of a peer in it has a quotation mark that is not escaped.
    """
    fields = item.fields
    start, end = fields[_RESULT_STATUS]
    status = _STATUSES.get(item.frame[start:end]) or f',"status":"0x{item.frame[start:end].hex()}"'
    if _RESULT_REASON in fields:
        status += _reason(item.reason or 0)
    if question.operation not in _REPEATING or ',"ids":' not in asked:
        span = fields.get(_RESPONSE_PAYLOAD)
        if span is not None:
            status += _identifiers(item, span, "answer_ids")
    return status


def _reason(number: int) -> str:
    name = reason_name(number)
    return f',"reason":"{name}"' if name != "Unknown" else f',"reason":"0x{number:x}"'


def _identifiers(item: RequestItem | ResponseItem, span: tuple[int, int], name: str) -> str:
    """Return the identifiers in a payload as a member; with more than 100, a second member says that there are more.

    Of a payload that can't be read, the identifiers up to the fault.
    """
    found: list[str] = []
    more = ""
    try:
        for field in ttlv.walk(item.frame, *span, UNIQUE_IDENTIFIERS):
            if len(found) == MOST_IDENTIFIERS:
                more = f',"{name}_cut":true'
                break
            value = item.frame[field.start : field.end]
            found.append(value_text(value.rstrip(bytes(1)) if field.type == _TEXT_STRING else value))
    except ProtocolError:
        more = f',"{name}_cut":true'
    return f',"{name}":[{",".join(found)}]{more}' if found or more else ""
