"""Encoding of the gateway's own messages: errors for clients, and requests to key managers."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from gateway.kmip import ttlv
from gateway.kmip.messages import FALLBACK_VERSION, Request, Version
from gateway.kmip.spec import Operation, ResultStatus, Tag

_T = TypeVar("_T")


class Ask(NamedTuple):
    """An operation of a request; ``payload`` holds the encoded items of the payload."""

    operation: int
    payload: bytes = b""
    unique_batch_item_id: bytes | None = None


def encode_request(version: Version, asks: Sequence[Ask], *, header: Iterable[bytes] = ()) -> bytes:
    """Encode a request. ``header`` holds encoded fields that go between Protocol Version and Batch Count."""
    items = [
        ttlv.structure(
            Tag.BATCH_ITEM,
            ttlv.enumeration(Tag.OPERATION, ask.operation),
            *_optional(Tag.UNIQUE_BATCH_ITEM_ID, ask.unique_batch_item_id, ttlv.octets),
            ttlv.structure(Tag.REQUEST_PAYLOAD, ask.payload),
        )
        for ask in asks
    ]
    count = () if version >= (3, 0) else (ttlv.integer(Tag.BATCH_COUNT, len(items)),)
    head = ttlv.structure(Tag.REQUEST_HEADER, _encode_version(version), *header, *count)
    return ttlv.structure(Tag.REQUEST_MESSAGE, head, *items)


def discover_versions(version: Version = (1, 1)) -> bytes:
    """Encode a request for all protocol versions of a server (1.4 section 4.26)."""
    return encode_request(version, [Ask(Operation.DISCOVER_VERSIONS)])


_QUERY_SERVER_INFORMATION: Final = 3  # 1.4 section 9.1.3.2.24


def query(version: Version = (1, 0)) -> bytes:
    """Encode a Query for the server's vendor and information (1.4 section 4.25)."""
    payload = ttlv.enumeration(Tag.QUERY_FUNCTION, _QUERY_SERVER_INFORMATION)
    return encode_request(version, [Ask(Operation.QUERY, payload)])


class Result(NamedTuple):
    """The outcome of an operation; ``payload`` holds the encoded items of the payload."""

    status: int
    operation: int | None = None
    unique_batch_item_id: bytes | None = None
    reason: int | None = None
    message: str | None = None
    payload: bytes | None = None
    asynchronous_correlation_value: bytes | None = None


def encode_response(version: Version, results: Sequence[Result], *, now: float | None = None) -> bytes:
    """Encode a response, in the order of 1.4 section 7.2; ``now``, in Unix seconds, is its Time Stamp."""
    items = [
        ttlv.structure(
            Tag.BATCH_ITEM,
            *_optional(Tag.OPERATION, result.operation, ttlv.enumeration),
            *_optional(Tag.UNIQUE_BATCH_ITEM_ID, result.unique_batch_item_id, ttlv.octets),
            ttlv.enumeration(Tag.RESULT_STATUS, result.status),
            *_optional(Tag.RESULT_REASON, result.reason, ttlv.enumeration),
            *_optional(Tag.RESULT_MESSAGE, result.message, ttlv.text),
            *_optional(Tag.ASYNCHRONOUS_CORRELATION_VALUE, result.asynchronous_correlation_value, ttlv.octets),
            *_optional(Tag.RESPONSE_PAYLOAD, result.payload, ttlv.structure),
        )
        for result in results
    ]
    count = () if version >= (3, 0) else (ttlv.integer(Tag.BATCH_COUNT, len(items)),)
    stamp = ttlv.date_time(Tag.TIME_STAMP, int(time.time() if now is None else now))
    head = ttlv.structure(Tag.RESPONSE_HEADER, _encode_version(version), stamp, *count)
    return ttlv.structure(Tag.RESPONSE_MESSAGE, head, *items)


def versions_discovered(request: Request, versions: Iterable[Version]) -> bytes:
    """Encode the answer to a Discover Versions (1.4 section 4.26), the preferred version first."""
    item = request.items[0]
    payload = b"".join(_encode_version(version) for version in versions)
    result = Result(ResultStatus.SUCCESS, item.operation, item.unique_batch_item_id, payload=payload)
    return encode_response(request.version, [result])


def failure(request: Request | None, reason: int, message: str, *, version: Version = FALLBACK_VERSION) -> bytes:
    """Encode an error of the gateway's own: Operation Failed, for every item of the request.

    Version, Operation and Unique Batch Item ID are the request's. For a request that could not be decoded (None), the
    response has a single item without Operation (1.4 section 11.1), and the version ``version``.
    """
    if request is None:
        return encode_response(version, [Result(ResultStatus.OPERATION_FAILED, reason=reason, message=message)])
    return failures(request, [(reason, message)] * len(request.items))


def failures(request: Request, errors: Sequence[tuple[int, str]]) -> bytes:
    """Encode an error of the gateway's own for each item of a request: a Result Reason and a Result Message."""
    results = [
        Result(ResultStatus.OPERATION_FAILED, item.operation, item.unique_batch_item_id, reason, message)
        for item, (reason, message) in zip(request.items, errors, strict=True)
    ]
    return encode_response(request.version, results)


def _encode_version(version: Version) -> bytes:
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )


def _optional(tag: Tag, value: _T | None, encode: Callable[[int, _T], bytes]) -> tuple[bytes, ...]:
    return () if value is None else (encode(tag, value),)
