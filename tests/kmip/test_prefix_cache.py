"""The prefix cache: a frame with a cached prefix decodes as it would without the cache, and no secret is kept."""

from collections.abc import Callable

import pytest

from gateway.errors import ProtocolError
from gateway.kmip import prefix_cache, ttlv
from gateway.kmip.decode import MAX_DEPTH, decode_request, decode_response
from gateway.kmip.messages import Fields, Request, Response, Version
from gateway.kmip.prefix_cache import PrefixCache
from gateway.kmip.spec import Operation, Tag
from tests.kit.messages import (
    authentication,
    batch_item,
    credential,
    get,
    identifier,
    nested,
    operation,
    payload,
    request,
    response,
    success,
)

GET = request(get())
ANSWER = response(success(Operation.GET, None, identifier("1")))

Decode = Callable[[bytes], Request | Response]
Decoded = tuple[Version, Fields, list[Fields]] | tuple[str, Version | None]


def decoded(decode: Decode, frame: bytes) -> Decoded:
    """Return the version and the fields that were decoded, or the error."""
    try:
        message = decode(frame)
    except ProtocolError as error:
        return str(error), error.version
    return message.version, message.fields, [item.fields for item in message.items]


def decoded_afresh(decode: Decode, frame: bytes) -> Decoded:
    """Decode without the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefixCache, "find", lambda *_: None)
        return decoded(decode, frame)


def cache_with(frame: bytes) -> PrefixCache:
    """Return a cache to which this request was added, as far as the cache takes it."""
    message = decode_request(frame)
    cache = PrefixCache(Tag.REQUEST_PAYLOAD, 6 * ttlv.HEADER_SIZE)
    cache.add(frame, message.version, message.fields, message.items[0].fields)
    return cache


@pytest.mark.parametrize(("frame", "decode"), [(GET, decode_request), (ANSWER, decode_response)])
def test_frames_with_a_cached_prefix_decode_as_they_do_without(frame: bytes, decode: Decode) -> None:
    changed = [
        frame[:position] + bytes([frame[position] ^ change]) + frame[position + 1 :]
        for position in range(len(frame))
        for change in (1, 4, 8, 16, 128)
    ]
    cut = [frame[:end] for end in range(len(frame))]
    longer = [frame + bytes(8), frame + frame]
    for each in changed + cut + longer:
        decode(frame)
        assert decoded(decode, each) == decoded_afresh(decode, each)


def test_only_a_frame_of_the_same_length_is_found() -> None:
    cache = cache_with(GET)
    found = cache.find(GET, MAX_DEPTH)
    assert found is not None
    assert (found.version, found.header, found.item) == decoded_fields(GET)
    assert GET[slice(*found.payload)] == identifier("1")
    assert cache.find(GET + bytes(8), MAX_DEPTH) is None
    assert cache.find(b"", MAX_DEPTH) is None


def decoded_fields(frame: bytes) -> tuple[Version, Fields, Fields]:
    message = decode_request(frame)
    return message.version, message.fields, message.items[0].fields


def test_deep_payload_is_refused_after_a_flat_payload_of_the_same_length() -> None:
    deep = request(batch_item(operation(Operation.GET), payload(nested(40))))
    size = len(deep) - len(request(batch_item(operation(Operation.GET), payload())))
    flat = request(batch_item(operation(Operation.GET), payload(ttlv.octets(Tag.DATA, bytes(size - 8)))))
    assert len(flat) == len(deep)
    with pytest.raises(ProtocolError, match="too deeply") as raised:
        cache_with(flat).find(deep, MAX_DEPTH)
    assert raised.value.version == decode_request(flat).version


@pytest.mark.parametrize(
    "frame",
    [
        request(get(), header=[authentication(credential(1))]),
        request(get(), header=[ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "nine char")]),
        request(batch_item(operation(Operation.GET), ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, b"1"), payload())),
        request(batch_item(operation(Operation.GET))),
    ],
    ids=["credential", "long field", "field before the payload", "no payload"],
)
def test_prefixes_with_secrets_or_long_fields_are_not_kept(frame: bytes) -> None:
    assert len(cache_with(frame)) == 0


def test_cache_holds_a_bounded_number_of_prefixes() -> None:
    cache = PrefixCache(Tag.REQUEST_PAYLOAD, 6 * ttlv.HEADER_SIZE)
    for number in range(2 * prefix_cache._ENTRIES):
        frame = request(batch_item(operation(Operation.GET), payload(ttlv.octets(Tag.DATA, bytes(8 * number)))))
        message = decode_request(frame, max_fields=100_000)
        cache.add(frame, message.version, message.fields, message.items[0].fields)
    assert repr(cache) == f"<PrefixCache of messages with REQUEST_PAYLOAD: {len(cache)} prefixes>"
    assert 0 < len(cache) <= prefix_cache._ENTRIES
