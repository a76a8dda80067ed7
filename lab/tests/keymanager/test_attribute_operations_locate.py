"""Locate: by each kind of attribute, in parts, and with destroyed objects."""

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Tag
from lab.tests.kit.engine_client import (
    AES,
    AES_256,
    SECRET,
    USE,
    WRAP,
    EngineClient,
    algorithm,
    date,
    group,
    length,
    mask,
    name,
    number,
)

ACTIVE = 2


def test_locate_finds_objects_by_their_attributes(client: EngineClient) -> None:
    small = client.create(algorithm(AES), length(128), mask(USE), name("small"), group("red"))
    large = client.create(algorithm(AES), length(256), mask(WRAP), name("large"), group("red"), group("blue"))
    client.activate(large)
    secret = client.register(ObjectType.SECRET_DATA, SECRET)
    everything = [secret.uid, large.uid, small.uid]
    for wanted, found in (
        ((), everything),
        ((name("small"),), [small.uid]),
        ((name("smal"),), []),
        ((group("red"),), [large.uid, small.uid]),
        ((group("red"), group("blue")), [large.uid]),
        ((length(128), algorithm(AES)), [small.uid]),
        ((mask(WRAP),), [large.uid]),
        ((mask(0x10),), [large.uid]),
        ((number("Object Type", Tag.OBJECT_TYPE, ObjectType.SECRET_DATA),), [secret.uid]),
        ((number("State", Tag.STATE, ACTIVE),), [large.uid]),
        ((date("Initial Date", Tag.INITIAL_DATE, 1), date("Initial Date", Tag.INITIAL_DATE, 2**33)), everything),
        ((date("Initial Date", Tag.INITIAL_DATE, 1), date("Initial Date", Tag.INITIAL_DATE, 2)), []),
    ):
        assert client.locate(*wanted).uids == found, wanted


def test_locate_returns_a_part_with_maximum_and_offset(client: EngineClient) -> None:
    made = [client.create().uid for _ in range(5)][::-1]
    most, offset = ttlv.integer(Tag.MAXIMUM_ITEMS, 2), ttlv.integer(Tag.OFFSET_ITEMS, 1)
    assert client.locate(items=[most]).uids == made[:2]
    part = client.locate(items=[most, offset])
    assert part.uids == made[1:3]
    assert part.payload.integer(Tag.LOCATED_ITEMS) == (5 if client.version >= (1, 3) else None)


def test_locate_finds_destroyed_objects_with_storage_status_mask(client_2_1: EngineClient) -> None:
    living, dead = client_2_1.create(), client_2_1.create()
    client_2_1.destroy(dead)
    assert client_2_1.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 4)]).uids == [dead.uid]
    assert client_2_1.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 5)]).uids == [dead.uid, living.uid]
    assert client_2_1.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 2)]).uids == []


def test_locate_finds_fresh_members_of_a_group(client_2_1: EngineClient) -> None:
    used, fresh = client_2_1.create(*AES_256, group("pool")), client_2_1.create(*AES_256, group("pool"))
    client_2_1.get(used)
    assert client_2_1.locate(group("pool"), items=[ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 1)]).uids == [fresh.uid]
