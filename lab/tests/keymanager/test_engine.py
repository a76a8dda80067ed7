"""Whole messages: batches, their order and failures, and messages that can't be decoded."""

import sqlite3
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.engine import Engine

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from lab.tests.kit.engine_client import (
    AES_256,
    VERSIONS,
    EngineClient,
    assert_failed,
    creation,
    name,
    uid_of,
)

GET = Ask(Operation.GET)
GET_NOTHING = Ask(Operation.GET, uid_of("none"))
CONTINUE, STOP, UNDO = (ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, option) for option in (1, 2, 3))


# Failures in a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [(), (STOP,)], ids=["by default", "on demand"])
def test_a_failure_stops_the_batch(client: EngineClient, header: tuple[bytes, ...]) -> None:
    answers = client.batch(creation(client.version), GET_NOTHING, creation(client.version), header=header)
    assert [each.ok for each in answers] == [True, False]
    assert client.engine.store.count() == 1


def test_continue_executes_the_items_after_a_failure(client: EngineClient) -> None:
    answers = client.batch(creation(client.version), GET_NOTHING, creation(client.version), header=[CONTINUE])
    assert [each.ok for each in answers] == [True, False, True]
    assert client.engine.store.count() == 2


def test_a_batch_with_option_undo_is_not_executed(client: EngineClient) -> None:
    answers = client.batch(creation(client.version), creation(client.version), header=[UNDO])
    assert len(answers) == 2
    for answer in answers:
        assert_failed(answer, ResultReason.FEATURE_NOT_SUPPORTED)
    assert client.engine.store.count() == 0


def test_results_have_operation_and_unique_batch_item_id(client: EngineClient) -> None:
    asks = [
        creation(client.version)._replace(unique_batch_item_id=b"first"),
        GET_NOTHING._replace(unique_batch_item_id=b"\0\xff"),
    ]
    answers = client.batch(*asks)
    assert [(each.item.operation, each.item.unique_batch_item_id) for each in answers] == [
        (Operation.CREATE, b"first"),
        (Operation.GET, b"\0\xff"),
    ]


def test_an_unsupported_operation_fails(client: EngineClient) -> None:
    for operation in (Operation.SIGN, Operation.REKEY, 0x8000_0001):
        answer = client.ask(operation)
        assert_failed(answer, ResultReason.OPERATION_NOT_SUPPORTED)
        assert answer.item.operation == operation


def test_a_response_larger_than_maximum_response_size_fails(client: EngineClient) -> None:
    made = client.create()
    enough = len(client.engine.handle(encode_request(client.version, [Ask(Operation.GET, uid_of(made))]), "alice"))
    fits, too_little = (ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, size) for size in (enough, enough - 1))
    assert client.ask(Operation.GET, uid_of(made), header=[fits]).ok
    assert_failed(client.ask(Operation.GET, uid_of(made), header=[too_little]), ResultReason.RESPONSE_TOO_LARGE)


def test_a_batch_is_answered_up_to_maximum_response_size(client: EngineClient) -> None:
    made = client.create()
    get = Ask(Operation.GET, uid_of(made))
    limit = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 900)
    answers = client.batch(*[get] * 6, header=[limit])
    assert answers[0].ok
    assert_failed(answers[-1], ResultReason.RESPONSE_TOO_LARGE)


def test_an_error_of_the_store_is_answered(client_1_2: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(Store, "save", fail)
    assert_failed(client_1_2.create(), ResultReason.GENERAL_FAILURE)
    monkeypatch.undo()
    assert client_1_2.create().ok


def test_mandatory_asynchronous_indicator_fails_unless_enabled(client_2_1: EngineClient) -> None:
    mandatory = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 1)
    assert_failed(
        client_2_1.ask(Operation.GET, uid_of(client_2_1.create()), header=[mandatory]),
        ResultReason.FEATURE_NOT_SUPPORTED,
    )
    optional = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 2)
    assert client_2_1.ask(Operation.GET, uid_of(client_2_1.create()), header=[optional]).ok


# Messages that can't be decoded ---------------------------------------------------------------------------------------


def invalid_message(answer: bytes) -> Response:
    """Return the response, which must be Invalid Message, with one item without Operation (1.4 section 11.1)."""
    response = decode_response(answer)
    (item,) = response.items
    assert item.operation == -1
    assert item.status == ResultStatus.OPERATION_FAILED
    assert item.reason == ResultReason.INVALID_MESSAGE
    return response


@pytest.mark.parametrize("version", [(0, 9), (1, 5), (2, 2), (3, 0), (9, 9)])
def test_an_unsupported_version_is_an_invalid_message(engine: Engine, version: tuple[int, int]) -> None:
    batch = engine.begin(encode_request(version, [GET]), "alice")
    assert invalid_message(batch.answer()).version == (1, 0)
    assert batch.pending is None
    assert not batch.undecodable


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "not TTLV": lambda _: b"GET / HTTP/1.1\r\n\r\n",
    "empty": lambda _: b"",
    "cut": lambda frame: frame[:-8],
    "batch count": lambda frame: frame.replace(ttlv.integer(Tag.BATCH_COUNT, 1), ttlv.integer(Tag.BATCH_COUNT, 2)),
    "payload item overruns": lambda frame: frame[:-12] + b"\0\0\1\0" + frame[-8:],
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_undecodable_message_is_an_invalid_message(engine: Engine, how: str) -> None:
    frame = encode_request((1, 2), [Ask(Operation.GET, uid_of("12345678"))])
    broken = BROKEN[how](frame)
    assert broken != frame
    batch = engine.begin(broken, "alice")
    invalid_message(batch.answer())
    assert batch.undecodable


def test_an_undecodable_batch_is_not_executed_in_part(client_1_2: EngineClient) -> None:
    bad = Ask(Operation.GET, uid_of("12345678")[:-12] + b"\0\0\1\0" + b"12345678")
    frame = encode_request((1, 2), [creation(client_1_2.version), bad])
    invalid_message(client_1_2.engine.handle(frame, "alice"))
    assert client_1_2.engine.store.count() == 0


def test_a_field_of_the_wrong_type_fails_its_item(client: EngineClient) -> None:
    answer = client.ask(Operation.ACTIVATE, ttlv.octets(Tag.UNIQUE_IDENTIFIER, b"12345678"))
    assert not answer.ok
    answer = client.ask(Operation.CREATE, ttlv.text(Tag.OBJECT_TYPE, "key"))
    assert_failed(answer, ResultReason.INVALID_MESSAGE)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_mutated_request_is_answered(engine: Engine, data: st.DataObject) -> None:
    """Change bytes anywhere in valid requests: each request gets an answer that can be decoded."""
    client = EngineClient(engine, data.draw(st.sampled_from(VERSIONS)))
    made = client.create(*AES_256, name("mine"))
    criterion = name("mine").item(client.version)
    wrapping = ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, 1),
        ttlv.structure(Tag.ENCRYPTION_KEY_INFORMATION, uid_of(made)),
    )
    reason = ttlv.structure(Tag.REVOCATION_REASON, ttlv.enumeration(Tag.REVOCATION_REASON_CODE, 2))
    ask = data.draw(
        st.sampled_from(
            [
                creation(client.version),
                Ask(Operation.GET, uid_of(made) + wrapping),
                Ask(Operation.LOCATE, ttlv.structure(Tag.ATTRIBUTES, criterion) + criterion),
                Ask(Operation.ADD_ATTRIBUTE, uid_of(made) + ttlv.structure(Tag.NEW_ATTRIBUTE, criterion) + criterion),
                Ask(Operation.REVOKE, uid_of(made) + reason + ttlv.date_time(Tag.COMPROMISE_OCCURRENCE_DATE, 1)),
                Ask(Operation.GET_ATTRIBUTES, uid_of(made) + ttlv.enumeration(Tag.ATTRIBUTE_REFERENCE, Tag.STATE)),
            ]
        )
    )
    frame = bytearray(encode_request(client.version, [ask]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert decode_response(engine.handle(bytes(frame), "alice")).items
