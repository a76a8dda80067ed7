"""The ID Placeholder, and the enumerations and indexes that 2.x adds to it."""

from kmip_lab.keymanager.protocol import UniqueIdentifier

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    AES_256,
    EC,
    EngineClient,
    algorithm,
    assert_failed,
    creation,
    length,
    make_pair,
    mask,
    name,
)

GET = Ask(Operation.GET)
CONTINUE = ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 1)


def test_the_id_placeholder_names_the_created_key_in_a_batch(client: EngineClient) -> None:
    made, activated, got = client.batch(creation(client.version), Ask(Operation.ACTIVATE), GET)
    assert made.uid == activated.uid == got.uid
    assert len(got.key) == 32


def test_the_id_placeholder_names_the_private_key_of_a_pair(client_1_2: EngineClient) -> None:
    payload = (
        client_1_2.given(algorithm(EC), length(256), kind="COMMON")
        + client_1_2.given(mask(1), kind="PRIVATE_KEY")
        + client_1_2.given(mask(2), kind="PUBLIC_KEY")
    )
    made, got = client_1_2.batch(Ask(Operation.CREATE_KEY_PAIR, payload), GET)
    assert got.uid == made.payload.text(Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER)


def test_the_id_placeholder_names_the_only_located_object(client: EngineClient) -> None:
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


def test_the_id_placeholder_ends_with_the_batch_and_with_a_failure(client: EngineClient) -> None:
    client.create()
    assert_failed(client.ask(Operation.GET), ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)
    failing = Ask(Operation.CREATE, ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY))
    made, failed, got = client.batch(creation(client.version), failing, GET, header=[CONTINUE])
    assert made.ok
    assert not failed.ok
    assert not got.ok


def test_2_x_names_objects_of_earlier_operations(client_2_1: EngineClient) -> None:
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
    assert {each.uid for each in got} == {made.uid} != {other.uid}
    first, second, *got = client_2_1.batch(
        creation(client_2_1.version), creation(client_2_1.version), numbered(0), numbered(-1)
    )
    assert [each.uid for each in got] == [first.uid, second.uid]
    assert_failed(client_2_1.batch(numbered(5))[0], ResultReason.OBJECT_NOT_FOUND)
    assert_failed(client_2_1.batch(named(UniqueIdentifier.REGISTER))[0], ResultReason.OBJECT_NOT_FOUND)


def test_2_x_names_either_key_of_a_pair(client_2_1: EngineClient) -> None:
    assert make_pair(client_2_1, EC, 256).ok
    payload = client_2_1.given(algorithm(EC), length(256), mask(1), kind="COMMON")
    public = ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, UniqueIdentifier.CREATE_KEY_PAIR_PUBLIC_KEY)
    made, got = client_2_1.batch(Ask(Operation.CREATE_KEY_PAIR, payload), Ask(Operation.GET, public))
    assert got.uid == made.payload.text(Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER)
