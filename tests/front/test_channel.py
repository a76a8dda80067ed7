"""The messages between a TLS worker and the core: whole, byte by byte, and with errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BuffersFullError,
    ClientAbandonedError,
    GatewayError,
    MessageTooLargeError,
    ProtocolError,
    StreamClosedError,
    TlsError,
)
from gateway.front.channel import Kind, Message, MessageReader, Opening, decode_error, encode, encode_error

messages = st.builds(Message, st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=80))


@given(st.lists(messages, max_size=6), st.integers(1, 40))
def test_messages_survive_any_chunking(sent: list[Message], size: int) -> None:
    stream = b"".join(encode(Kind(kind), connection, payload) for kind, connection, payload in sent)
    reader = MessageReader()
    found = [message for at in range(0, len(stream), size) for message in reader.feed(stream[at : at + size])]
    assert found == sent
    assert len(reader) == 0


def test_an_unfinished_message_is_held() -> None:
    reader = MessageReader()
    stream = encode(Kind.FRAME, 7, b"12345678")
    assert list(reader.feed(stream + stream[:12])) == [Message(Kind.FRAME, 7, b"12345678")]
    assert len(reader) == 12


@pytest.mark.parametrize("certificate", [b"", b"\x30\x82" + bytes(900)])
def test_an_opening_survives(certificate: bytes) -> None:
    opening = Opening("kmip", "[2001:db8::1]:4711", "TLSv1.3", resumed=True, seconds=0.0012, certificate=certificate)
    assert Opening.decode(opening.encode()) == opening


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("not a Request Message"),
        ProtocolError("more than 5 batch items", version=(1, 4)),
        MessageTooLargeError("too large", version=(2, 1)),
        BuffersFullError("full"),
        StreamClosedError("gone"),
        TlsError("too many records", reason="records"),
        ClientAbandonedError("reading_timeout"),
    ],
)
def test_an_error_keeps_its_class_words_and_facts(error: GatewayError) -> None:
    found = decode_error(encode_error(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert getattr(found, "version", None) == getattr(error, "version", None)
    assert getattr(found, "reason", None) == getattr(error, "reason", None)
