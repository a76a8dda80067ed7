"""Framing: whole messages from any chunks; the reader holds at most a message and a chunk."""

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import MessageTooLargeError, ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.framing import FrameReader
from gateway.kmip.spec import ItemType, Tag
from tests.kit.messages import (
    WHOLE_REQUESTS,
    Letter,
    broken,
    get,
    grows_in_proportion,
    letters,
    printed,
    raw,
    request,
    response,
    success,
)

MAX_SIZE = 1 << 20
GET = request(get())
EMPTY = printed("42 00 78 | 01 | 00 00 00 00")


def reader(max_size: int = MAX_SIZE) -> FrameReader:
    return FrameReader(Tag.REQUEST_MESSAGE, max_size)


def read(frames: FrameReader, *chunks: bytes) -> list[bytes]:
    """Feed all chunks, and return the messages."""
    found = []
    for chunk in chunks:
        frame = frames.feed(chunk)
        while frame is not None:
            found.append(frame)
            frame = frames.next_frame()
    return found


# Whole, byte by byte, with more behind --------------------------------------------------------------------------------


def test_a_whole_message_comes_back_as_it_is() -> None:
    frames = reader()

    assert frames.feed(GET) is GET
    assert len(frames) == 0
    assert frames.next_frame() is None


def test_message_fed_byte_by_byte_is_returned_with_its_last_byte() -> None:
    frames = reader()

    for index in range(len(GET) - 1):
        assert frames.feed(GET[index : index + 1]) is None
        assert len(frames) == index + 1
    assert frames.feed(GET[-1:]) == GET
    assert len(frames) == 0


@pytest.mark.parametrize("at", range(len(GET) + 1))
def test_a_message_may_be_cut_anywhere(at: int) -> None:
    assert read(reader(), GET[:at], GET[at:]) == [GET]


def test_bytes_after_a_message_are_kept() -> None:
    frames = reader()

    for size in range(1, len(GET)):
        assert frames.feed(GET + GET[:size]) == GET
        assert len(frames) == size
        assert frames.next_frame() is None
        assert frames.feed(GET[size:]) == GET
    assert len(frames) == 0


def test_pipelined_messages_come_one_by_one_and_in_order() -> None:
    first, second, third = (request(get(text)) for text in ("1", "22" * 10, "3"))

    for at in range(len(first + second + third) + 1):
        stream = first + second + third
        assert read(reader(), stream[:at], stream[at:]) == [first, second, third]


def test_no_bytes_change_nothing() -> None:
    frames = reader()

    assert read(frames, b"", GET[:20], b"", GET[20:], b"") == [GET]


def test_a_message_may_be_empty() -> None:
    assert read(reader(), EMPTY + EMPTY[:3], EMPTY[3:]) == [EMPTY, EMPTY]


@given(st.lists(letters, min_size=1, max_size=4), st.data())
def test_any_chunking_equals_no_chunking(sent: list[Letter], data: st.DataObject) -> None:
    messages = [letter.encode() for letter in sent]
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert read(reader(), *chunks) == messages


@given(st.lists(st.integers(1, 40_000), min_size=2, max_size=12), st.integers(0, 40))
def test_long_message_in_any_chunks_is_followed_by_the_next(sizes: list[int], more: int) -> None:
    body = bytes(index % 251 for index in range(8 * (sum(sizes) // 8)))
    message = raw(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE, len(body), body)
    stream = message + GET[:more]
    ends = [sum(sizes[:count]) for count in range(len(sizes))] + [len(stream)]
    frames = reader()

    chunks = [stream[start:end] for start, end in pairwise(ends)]
    assert read(frames, *chunks) == [message]
    assert len(frames) == more
    assert read(frames, GET[more:]) == [GET]


# Refused bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [b"G", b"\x16\x03\x01\x02\0", b"SSH-2.0-", b"\0", printed("42 00 78 02 00 00 00 08"), printed("42 00 7B 01")],
    ids=["letter", "TLS hello", "SSH", "zero", "not a structure", "response"],
)
def test_message_of_another_kind_is_refused_at_its_first_wrong_byte(begin: bytes) -> None:
    frames = reader()
    right = printed("42 00 78 01")
    wrong_at = next(index for index, byte in enumerate(begin) if byte != right[index])

    assert read(frames, *(begin[index : index + 1] for index in range(wrong_at))) == []
    with pytest.raises(ProtocolError, match="the bytes are no Request Message"):
        frames.feed(begin[wrong_at : wrong_at + 1])


def test_reader_of_responses_refuses_requests() -> None:
    frames = FrameReader(Tag.RESPONSE_MESSAGE, MAX_SIZE)
    answer = response(success())

    assert frames.feed(answer) == answer
    with pytest.raises(ProtocolError, match="the bytes are no Response Message"):
        frames.feed(GET)


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\r\n", b"POST /kmip HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_http_client_gets_an_error_that_names_http(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="HTTP"):
        reader().feed(line)


@pytest.mark.parametrize("length", [1, 4, 7, 9, 12, 100])
def test_a_message_length_is_a_multiple_of_eight(length: int) -> None:
    with pytest.raises(ProtocolError, match="multiple of 8"):
        reader().feed(raw(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE, length, b""))


def test_error_in_the_second_message_is_raised_after_the_first() -> None:
    frames = reader()

    assert frames.feed(GET + b"GET / HTTP/1.1") == GET
    with pytest.raises(ProtocolError, match="HTTP"):
        frames.next_frame()


def test_the_size_limit_is_exact() -> None:
    assert reader(len(GET)).feed(GET) == GET
    with pytest.raises(MessageTooLargeError, match=f"{len(GET)} bytes, over the limit of {len(GET) - 1}"):
        reader(len(GET) - 1).feed(GET)


def test_a_message_over_the_limit_is_refused_with_its_head_alone() -> None:
    frames = reader(len(GET) - 8)

    assert read(frames, GET[:7]) == []
    with pytest.raises(MessageTooLargeError):
        frames.feed(GET[7:8])


@given(st.binary(max_size=60) | broken(WHOLE_REQUESTS), st.integers(1, 30))
def test_garbage_only_raises_protocol_error(garbage: bytes, size: int) -> None:
    frames = reader()

    with suppress(ProtocolError):
        for at in range(0, len(garbage), size):
            for frame in read(frames, garbage[at : at + size]):
                assert len(frame) == 8 + ttlv.HEAD.unpack_from(frame)[1]


# Memory and work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2**31 - 8, 2**31, 2**32 - 8])
def test_declared_length_allocates_no_memory(length: int) -> None:
    """Neither if the length is refused, nor if the limit allows it."""
    head = raw(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE, length, b"")
    strict, generous = reader(), reader(2**33)

    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            strict.feed(head)
        assert generous.feed(head) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (len(strict), len(generous)) == (0, 8)
    assert peak < 100_000


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(0, 4))
def test_no_more_is_held_than_a_message_and_a_chunk(sizes: list[int], pause: int) -> None:
    """For any bytes in any chunks."""
    frames = reader(len(GET))
    stream = (GET + EMPTY * pause) * 100

    at = 0
    for size in sizes:
        frames.feed(stream[at : at + size])
        assert len(frames) < len(GET) + size
        while frames.next_frame() is not None:
            pass
        assert len(frames) < len(GET)
        at += size


def test_a_long_message_in_small_chunks_takes_steps_in_proportion() -> None:
    def drip(size: int) -> Callable[[], object]:
        message = raw(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE, 8 * size, bytes(8 * size))
        return lambda: read(reader(), *(message[index : index + 1] for index in range(len(message))))

    assert grows_in_proportion(drip)


def test_a_long_message_in_single_bytes_holds_few_objects() -> None:
    message = raw(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE, 200_000, bytes(200_000))
    frames = reader()

    tracemalloc.start()
    try:
        assert read(frames, *(message[index : index + 1] for index in range(len(message) - 1))) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 2 * len(message)


def test_many_messages_in_one_chunk_take_steps_in_proportion() -> None:
    assert grows_in_proportion(lambda size: lambda: read(reader(), GET * size))


def test_repr_has_the_kind_of_message_and_the_bytes_held() -> None:
    frames = reader()
    frames.feed(GET[:20])

    assert repr(frames) == "<FrameReader Request Message: 20 bytes held>"
