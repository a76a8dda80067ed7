"""Whole messages: batches, their order and their failures, and what can't be read."""

import sqlite3
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.engine import Engine
from kmip_lab.keymanager.protocol import UniqueIdentifier

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Response
from gateway.kmip.spec import ObjectType, Operation, ResultReason, ResultStatus, Tag
from lab.tests.kit.engine_client import (
    AES_256,
    EC,
    VERSIONS,
    EngineClient,
    algorithm,
    assert_failed,
    creation,
    length,
    make_pair,
    mask,
    name,
    uid_of,
)

GET = Ask(Operation.GET)
GET_NOTHING = Ask(Operation.GET, uid_of("none"))
CONTINUE, STOP, UNDO = (ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, option) for option in (1, 2, 3))


# The ID Placeholder -------------------------------------------------------------------------------------------------


def test_the_id_placeholder_carries_a_key_through_a_batch(client: EngineClient) -> None:
    made, activated, got = client.batch(creation(client.version), Ask(Operation.ACTIVATE), GET)
    assert made.uid == activated.uid == got.uid
    assert len(got.key) == 32


def test_it_stands_for_the_private_key_of_a_pair(client_1_2: EngineClient) -> None:
    payload = (
        client_1_2.given(algorithm(EC), length(256), kind="COMMON")
        + client_1_2.given(mask(1), kind="PRIVATE_KEY")
        + client_1_2.given(mask(2), kind="PUBLIC_KEY")
    )
    made, got = client_1_2.batch(Ask(Operation.CREATE_KEY_PAIR, payload), GET)
    assert got.uid == made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER)


def test_it_stands_for_the_one_object_that_was_located(client: EngineClient) -> None:
    made = client.create(*AES_256, name("mine"))
    criterion = name("mine").item(client.version)
    if client.version >= (2, 0):
        criterion = ttlv.structure(Tag.ATTRIBUTES, criterion)
    located, got = client.batch(Ask(Operation.LOCATE, criterion), GET)
    assert located.uids == [made.uid]
    assert got.uid == made.uid
    client.create()
    located, got = client.batch(Ask(Operation.LOCATE), GET)
    assert len(located.uids) == 2
    assert_failed(got, ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)


def test_it_is_forgotten_with_the_batch_and_with_a_failure(client: EngineClient) -> None:
    client.create()
    assert_failed(client.ask(Operation.GET), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)
    failing = Ask(Operation.CREATE, ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY))
    made, failed, got = client.batch(creation(client.version), failing, GET, header=[CONTINUE])
    assert made.ok
    assert not failed.ok
    assert not got.ok


def test_2_x_names_what_earlier_operations_gave(client_2_1: EngineClient) -> None:
    def named(which: UniqueIdentifier) -> Ask:
        return Ask(Operation.GET, ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, which))

    def numbered(which: int) -> Ask:
        return Ask(Operation.GET, ttlv.integer(Tag.UNIQUE_IDENTIFIER, which))

    other = client_2_1.create()
    made, *got = client_2_1.batch(
        creation(client_2_1.version),
        named(UniqueIdentifier.CREATE),
        named(UniqueIdentifier.ID_PLACEHOLDER),
        numbered(0),
    )
    assert {one.uid for one in got} == {made.uid} != {other.uid}
    first, second, *got = client_2_1.batch(
        creation(client_2_1.version), creation(client_2_1.version), numbered(0), numbered(-1)
    )
    assert [one.uid for one in got] == [first.uid, second.uid]
    assert_failed(client_2_1.batch(numbered(5))[0], ResultReason.OBJECT_NOT_FOUND)
    assert_failed(client_2_1.batch(named(UniqueIdentifier.REGISTER))[0], ResultReason.OBJECT_NOT_FOUND)


def test_2_x_names_either_key_of_a_pair(client_2_1: EngineClient) -> None:
    assert make_pair(client_2_1, EC, 256).ok
    payload = client_2_1.given(algorithm(EC), length(256), mask(1), kind="COMMON")
    public = ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, UniqueIdentifier.CREATE_KEY_PAIR_PUBLIC_KEY)
    made, got = client_2_1.batch(Ask(Operation.CREATE_KEY_PAIR, payload), Ask(Operation.GET, public))
    assert got.uid == made.payload.text(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER)


# Failures in a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [(), (STOP,)], ids=["by default", "on demand"])
def test_a_failure_stops_the_batch(client: EngineClient, header: tuple[bytes, ...]) -> None:
    answers = client.batch(creation(client.version), GET_NOTHING, creation(client.version), header=header)
    assert [one.ok for one in answers] == [True, False]
    assert client.engine.store.count() == 1


def test_a_failure_is_passed_over_on_demand(client: EngineClient) -> None:
    answers = client.batch(creation(client.version), GET_NOTHING, creation(client.version), header=[CONTINUE])
    assert [one.ok for one in answers] == [True, False, True]
    assert client.engine.store.count() == 2


def test_a_batch_that_is_to_be_undone_is_not_begun(client: EngineClient) -> None:
    answers = client.batch(creation(client.version), creation(client.version), header=[UNDO])
    assert len(answers) == 2
    for answer in answers:
        assert_failed(answer, ResultReason.FEATURE_NOT_SUPPORTED)
    assert client.engine.store.count() == 0


def test_items_are_answered_by_operation_and_id(client: EngineClient) -> None:
    asks = [
        creation(client.version)._replace(unique_batch_item_id=b"first"),
        GET_NOTHING._replace(unique_batch_item_id=b"\0\xff"),
    ]
    answers = client.batch(*asks)
    assert [(one.item.operation, one.item.unique_batch_item_id) for one in answers] == [
        (Operation.CREATE, b"first"),
        (Operation.GET, b"\0\xff"),
    ]


def test_an_operation_that_is_not_known_here(client: EngineClient) -> None:
    for operation in (Operation.SIGN, Operation.REKEY, 0x8000_0001):
        answer = client.ask(operation)
        assert_failed(answer, ResultReason.OPERATION_NOT_SUPPORTED)
        assert answer.item.operation == operation


def test_an_answer_that_would_be_too_large(client: EngineClient) -> None:
    made = client.create()
    enough = len(client.engine.handle(encode_request(client.version, [Ask(Operation.GET, uid_of(made))]), "alice"))
    fits, too_little = (ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, size) for size in (enough, enough - 1))
    assert client.ask(Operation.GET, uid_of(made), header=[fits]).ok
    assert_failed(client.ask(Operation.GET, uid_of(made), header=[too_little]), ResultReason.RESPONSE_TOO_LARGE)


def test_of_a_large_batch_what_fits_is_answered(client: EngineClient) -> None:
    made = client.create()
    get = Ask(Operation.GET, uid_of(made))
    room = ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 900)
    answers = client.batch(*[get] * 6, header=[room])
    assert answers[0].ok
    assert_failed(answers[-1], ResultReason.RESPONSE_TOO_LARGE)


def test_a_store_that_fails_is_an_answer(client_1_2: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(Store, "save", fail)
    assert_failed(client_1_2.create(), ResultReason.GENERAL_FAILURE)
    monkeypatch.undo()
    assert client_1_2.create().ok


def test_a_client_that_insists_on_asynchronous_answers(client_2_1: EngineClient) -> None:
    mandatory = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 1)
    assert_failed(
        client_2_1.ask(Operation.GET, uid_of(client_2_1.create()), header=[mandatory]),
        ResultReason.FEATURE_NOT_SUPPORTED,
    )
    optional = ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, 2)
    assert client_2_1.ask(Operation.GET, uid_of(client_2_1.create()), header=[optional]).ok


# What can't be read -------------------------------------------------------------------------------------------------


def the_one_refusal(answer: bytes) -> Response:
    """An answer with one item without Operation: Invalid Message (1.4 section 11.1)."""
    response = decode_response(answer)
    (item,) = response.items
    assert item.operation == -1
    assert item.status == ResultStatus.OPERATION_FAILED
    assert item.reason == ResultReason.INVALID_MESSAGE
    return response


@pytest.mark.parametrize("version", [(0, 9), (1, 5), (2, 2), (3, 0), (9, 9)])
def test_a_version_that_is_not_spoken(engine: Engine, version: tuple[int, int]) -> None:
    batch = engine.begin(encode_request(version, [GET]), "alice")
    assert the_one_refusal(batch.answer()).version == (1, 0)
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
def test_a_message_that_can_not_be_read(engine: Engine, how: str) -> None:
    frame = encode_request((1, 2), [Ask(Operation.GET, uid_of("12345678"))])
    broken = BROKEN[how](frame)
    assert broken != frame
    batch = engine.begin(broken, "alice")
    the_one_refusal(batch.answer())
    assert batch.undecodable


def test_nothing_of_a_batch_is_executed_that_can_not_be_read_to_its_end(client_1_2: EngineClient) -> None:
    bad = Ask(Operation.GET, uid_of("12345678")[:-12] + b"\0\0\1\0" + b"12345678")
    frame = encode_request((1, 2), [creation(client_1_2.version), bad])
    the_one_refusal(client_1_2.engine.handle(frame, "alice"))
    assert client_1_2.engine.store.count() == 0


def test_a_field_of_the_wrong_type_fails_its_item(client: EngineClient) -> None:
    answer = client.ask(Operation.ACTIVATE, ttlv.octets(Tag.UNIQUE_IDENTIFIER, b"12345678"))
    assert not answer.ok
    answer = client.ask(Operation.CREATE, ttlv.text(Tag.OBJECT_TYPE, "key"))
    assert_failed(answer, ResultReason.INVALID_MESSAGE)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_is_without_an_answer(engine: Engine, data: st.DataObject) -> None:
    """Requests with bytes changed anywhere: each has an answer that can be read, and none breaks the key manager."""
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
