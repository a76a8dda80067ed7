"""Get, plain and wrapped; Locate; Check."""

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_unwrap_with_padding
from kmip_lab.keymanager.batch import Engine
from kmip_lab.keymanager.tree import Node

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.talk import (
    AES,
    AES_256,
    CERTIFICATE,
    SECRET,
    USE,
    WRAP,
    Answer,
    Talk,
    algorithm,
    date,
    flag,
    group,
    key_block,
    length,
    mask,
    name,
    number,
    refused,
    uid_of,
)

ACTIVE = 2


def test_nobody_gets_what_another_owns(engine: Engine, talk: Talk) -> None:
    made, mallory = talk.create(), Talk(engine, talk.version, "mallory")
    not_found = ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND
    refused(mallory.get(made), *not_found)
    refused(mallory.attributes(made), *not_found)
    refused(mallory.activate(made), *not_found)
    refused(mallory.destroy(made), *not_found)
    assert mallory.locate().uids == []
    assert talk.get(made).ok


def test_a_key_is_given_in_the_format_that_it_has(talk: Talk) -> None:
    made = talk.create()
    raw, pkcs_8 = ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 1), ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 4)
    assert talk.get(made, raw).key == talk.get(made).key
    refused(talk.get(made, pkcs_8), ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED)
    compressed = ttlv.enumeration(Tag.KEY_COMPRESSION_TYPE, 1)
    refused(talk.get(made, compressed), ResultReason.KEY_COMPRESSION_TYPE_NOT_SUPPORTED)


def test_the_first_get_ends_freshness(modern: Talk) -> None:
    made = modern.create()
    assert modern.attributes(made).fact("Fresh") == 1
    assert modern.get(made).ok
    assert modern.attributes(made).fact("Fresh") == 0


def wrapping(which: Answer | str, *options: bytes, mode: int | None = 0x0D) -> bytes:
    parameters = [] if mode is None else [ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, mode)]
    return ttlv.structure(
        Tag.KEY_WRAPPING_SPECIFICATION,
        ttlv.enumeration(Tag.WRAPPING_METHOD, 1),
        ttlv.structure(
            Tag.ENCRYPTION_KEY_INFORMATION,
            uid_of(which),
            ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, *parameters),
        ),
        *options,
    )


NO_ENCODING = ttlv.enumeration(Tag.ENCODING_OPTION, 1)
TTLV_ENCODING = ttlv.enumeration(Tag.ENCODING_OPTION, 2)


def wrapping_key(talk: Talk) -> Answer:
    made = talk.create(algorithm(AES), length(256), mask(WRAP))
    assert talk.activate(made).ok
    return made


def wrapped_block(answer: Answer) -> Node:
    assert answer.ok, answer
    block = answer.payload.children[-1].structure(Tag.KEY_BLOCK)
    assert block is not None
    return block


def test_a_key_is_wrapped_alone(talk: Talk) -> None:
    made, wrapper = talk.create(), wrapping_key(talk)
    wrapped = talk.get(made, wrapping(wrapper, NO_ENCODING))
    block = wrapped_block(wrapped)
    assert aes_key_unwrap(talk.get(wrapper).key, wrapped.key) == talk.get(made).key
    data = block.structure(Tag.KEY_WRAPPING_DATA)
    assert data is not None
    assert data.enumeration(Tag.WRAPPING_METHOD) == 1
    assert data.enumeration(Tag.ENCODING_OPTION) == 1
    information = data.structure(Tag.ENCRYPTION_KEY_INFORMATION)
    assert information is not None
    assert information.text(Tag.UNIQUE_IDENTIFIER) == wrapper.uid


@pytest.mark.parametrize("options", [(), (TTLV_ENCODING,)], ids=["by default", "on demand"])
def test_a_key_is_wrapped_with_its_key_value(talk: Talk, options: tuple[bytes, ...]) -> None:
    made, wrapper = talk.create(), wrapping_key(talk)
    value = wrapped_block(talk.get(made, wrapping(wrapper, *options, mode=None))).find(Tag.KEY_VALUE)
    assert value is not None
    unwrapped = Node.of(aes_key_unwrap(talk.get(wrapper).key, value.value))
    assert unwrapped.tag == Tag.KEY_VALUE
    assert unwrapped.children[0].value == talk.get(made).key


def test_a_key_of_odd_length_is_wrapped_with_padding(modern: Talk) -> None:
    wrapper, password = wrapping_key(modern), b"not a multiple of 8"
    secret = ttlv.structure(Tag.SECRET_DATA, ttlv.enumeration(Tag.SECRET_DATA_TYPE, 1), key_block(password, 2))
    made = modern.register(ObjectType.SECRET_DATA, secret)
    refused(modern.get(made, wrapping(wrapper, NO_ENCODING)), ResultReason.CRYPTOGRAPHIC_FAILURE)
    wrapped = modern.get(made, wrapping(wrapper, NO_ENCODING, mode=0x0C))
    assert aes_key_unwrap_with_padding(modern.get(wrapper).key, wrapped.key) == password


def test_what_does_not_wrap(talk: Talk) -> None:
    made = talk.create()
    missing = ResultReason.ITEM_NOT_FOUND, ResultReason.WRAPPING_OBJECT_NOT_FOUND
    refused(talk.get(made, wrapping("none")), *missing)
    refused(talk.get(made, wrapping(Talk(talk.engine, talk.version, "bob").create())), *missing)
    wrapper = talk.create(algorithm(AES), length(256), mask(WRAP))
    inactive = talk.get(made, wrapping(wrapper))
    refused(inactive, ResultReason.PERMISSION_DENIED, ResultReason.WRONG_KEY_LIFECYCLE_STATE)
    talk.activate(made)
    other_use = talk.get(wrapper, wrapping(made))
    refused(other_use, ResultReason.PERMISSION_DENIED, ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK)
    talk.activate(wrapper)
    mode = talk.get(made, wrapping(wrapper, mode=1))
    refused(mode, ResultReason.FEATURE_NOT_SUPPORTED, ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED)
    option = talk.get(made, wrapping(wrapper, ttlv.enumeration(Tag.ENCODING_OPTION, 9)))
    refused(option, ResultReason.ENCODING_OPTION_ERROR)
    certificate = talk.register(ObjectType.CERTIFICATE, CERTIFICATE)
    refused(talk.get(certificate, wrapping(wrapper)), ResultReason.ILLEGAL_OPERATION)
    talk.revoke(wrapper)
    talk.destroy(wrapper)
    gone = talk.get(made, wrapping(wrapper))
    refused(gone, ResultReason.ITEM_NOT_FOUND, ResultReason.WRAPPING_OBJECT_DESTROYED)


def test_a_sensitive_key_leaves_wrapped_only(modern: Talk) -> None:
    wrapper, facts = wrapping_key(modern), (algorithm(AES), length(256), mask(USE))
    sensitive = modern.create(*facts, flag("Sensitive", Tag.SENSITIVE, True))
    refused(modern.get(sensitive), ResultReason.SENSITIVE)
    assert modern.get(sensitive, wrapping(wrapper)).ok
    kept = modern.create(*facts, flag("Extractable", Tag.EXTRACTABLE, False))
    refused(modern.get(kept, wrapping(wrapper)), ResultReason.NOT_EXTRACTABLE)


# Locate and Check ----------------------------------------------------------------------------------------------------


def test_locate_by_what_a_key_is(talk: Talk) -> None:
    small = talk.create(algorithm(AES), length(128), mask(USE), name("small"), group("red"))
    large = talk.create(algorithm(AES), length(256), mask(WRAP), name("large"), group("red"), group("blue"))
    talk.activate(large)
    secret = talk.register(ObjectType.SECRET_DATA, SECRET)
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
        assert talk.locate(*wanted).uids == found, wanted


def test_locate_gives_a_part(talk: Talk) -> None:
    made = [talk.create().uid for _ in range(5)][::-1]
    most, offset = ttlv.integer(Tag.MAXIMUM_ITEMS, 2), ttlv.integer(Tag.OFFSET_ITEMS, 1)
    assert talk.locate(items=[most]).uids == made[:2]
    part = talk.locate(items=[most, offset])
    assert part.uids == made[1:3]
    assert part.payload.integer(Tag.LOCATED_ITEMS) == (5 if talk.version >= (1, 3) else None)


def test_locate_finds_the_destroyed_on_demand(modern: Talk) -> None:
    living, dead = modern.create(), modern.create()
    modern.destroy(dead)
    assert modern.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 4)]).uids == [dead.uid]
    assert modern.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 5)]).uids == [dead.uid, living.uid]
    assert modern.locate(items=[ttlv.integer(Tag.STORAGE_STATUS_MASK, 2)]).uids == []


def test_locate_finds_fresh_members_of_a_group(modern: Talk) -> None:
    used, fresh = modern.create(*AES_256, group("pool")), modern.create(*AES_256, group("pool"))
    modern.get(used)
    assert modern.locate(group("pool"), items=[ttlv.enumeration(Tag.OBJECT_GROUP_MEMBER, 1)]).uids == [fresh.uid]


def test_check_says_what_stands_against_it(talk: Talk) -> None:
    made = talk.create()
    allowed = talk.ask(Operation.CHECK, uid_of(made), ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, 4))
    assert allowed.uid == made.uid
    forbidden = talk.ask(Operation.CHECK, uid_of(made), ttlv.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK, 0x14))
    refused(forbidden, ResultReason.PERMISSION_DENIED)
    assert forbidden.payload.integer(Tag.CRYPTOGRAPHIC_USAGE_MASK) == 0x14
    assert forbidden.payload.find(Tag.UNIQUE_IDENTIFIER) is None
