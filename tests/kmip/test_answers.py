"""Matching of responses and requests: by operation, Unique Batch Item ID and Unique Identifier."""

from collections.abc import Callable, Iterable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kmip import compose, ttlv
from gateway.kmip.answers import MadeObjects, is_answer_to
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import ItemType, Operation, ResultReason, ResultStatus, Tag
from tests.kit.messages import (
    VENDOR_TAG,
    batch_item,
    grows_in_proportion,
    identifier,
    operation,
    payload,
    raw,
    request,
    response,
    steps,
    success,
)

# Operation and Unique Batch Item ID -----------------------------------------------------------------------------------


def numbered(number: int, batch_id: bytes | None) -> bytes:
    """A request's item of this operation, with this Unique Batch Item ID."""
    given_id = () if batch_id is None else (ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, batch_id),)
    return batch_item(operation(number), *given_id, payload())


Echo = tuple[int | None, bytes | None]


def belongs(questions: list[tuple[int, bytes | None]], answers: list[Echo]) -> bool:
    asking = decode_request(request(*(numbered(*question) for question in questions)))
    return is_answer_to(decode_response(response(*(success(*answer) for answer in answers))), asking)


GET, CREATE, POLL = int(Operation.GET), int(Operation.CREATE), int(Operation.POLL)


@pytest.mark.parametrize(
    "answer", [(GET, b"1"), (GET, None), (None, b"1"), (None, None)], ids=["all", "operation", "id", "nothing"]
)
def test_an_answer_may_echo_all_or_less(answer: Echo) -> None:
    assert belongs([(GET, b"1")], [answer])
    assert belongs([(CREATE, b"0"), (GET, b"1")], [answer])


@pytest.mark.parametrize(
    "answer",
    [(CREATE, b"1"), (GET, b"2"), (CREATE, None), (None, b"2"), (GET, b""), (GET, b"1\0")],
    ids=["operation", "id", "operation alone", "id alone", "empty id", "longer id"],
)
def test_an_answer_that_contradicts_the_request_is_refused(answer: Echo) -> None:
    assert not belongs([(GET, b"1")], [answer])
    assert not belongs([(GET, b"1"), (GET, b"0")], [answer])
    assert not belongs([(GET, b"1"), (GET, b"0")], [(GET, b"1"), answer])


def test_an_id_that_the_request_does_not_have_is_refused() -> None:
    assert belongs([(GET, None)], [(GET, None)])
    assert not belongs([(GET, None)], [(GET, b"1")])


def test_an_operation_and_an_id_of_different_items_are_refused() -> None:
    assert not belongs([(GET, b"1"), (CREATE, b"2")], [(GET, b"2")])
    assert not belongs([(GET, b"1"), (CREATE, b"2")], [(CREATE, b"1"), (GET, b"2")])


def test_more_answers_than_items_are_refused() -> None:
    assert not belongs([(GET, None)], [(GET, None), (GET, None)])
    assert not belongs([(GET, None)], [(None, None), (None, None)])
    assert not belongs([(GET, b"1"), (GET, b"2")], [(GET, b"1"), (GET, b"1")])
    assert not belongs([(GET, None), (CREATE, None)], [(GET, None), (GET, None)])
    assert not belongs([(GET, b"1"), (CREATE, b"2")], [(None, b"1"), (None, b"1")])


def test_a_batch_may_be_answered_in_any_order_and_not_to_its_end() -> None:
    questions: list[tuple[int, bytes | None]] = [(GET, b"1"), (CREATE, b"2"), (GET, b"3")]

    assert belongs(questions, [(GET, b"3"), (GET, b"1"), (CREATE, b"2")])
    assert belongs(questions, [(GET, b"1"), (CREATE, b"2")])
    assert belongs([(GET, None), (GET, None), (CREATE, None)], [(GET, None), (GET, None), (CREATE, None)])
    assert belongs(questions, [(None, None)])


def test_a_poll_is_answered_as_what_it_asks_about() -> None:
    """2.1 test case TC-ASYNC-10-21: Poll, and the answer's Operation is Create."""
    assert belongs([(POLL, b"1")], [(CREATE, b"1")])
    assert belongs([(POLL, None)], [(CREATE, None)])
    assert belongs([(POLL, None)], [(POLL, None)])
    assert belongs([(GET, b"1"), (POLL, b"2")], [(CREATE, b"2"), (GET, b"1")])
    assert belongs([(CREATE, None), (POLL, None)], [(CREATE, None), (CREATE, None)])
    assert not belongs([(POLL, b"1")], [(CREATE, b"2")])
    assert not belongs([(GET, b"1"), (POLL, b"2")], [(CREATE, b"1")])
    assert not belongs([(GET, None), (POLL, None)], [(CREATE, None), (CREATE, None)])


def test_matching_a_batch_takes_steps_in_proportion_to_its_size() -> None:
    """Even if the answers come in the worst order."""

    def match(size: int) -> Callable[[], object]:
        ids = [b"%d" % number for number in range(size)]
        asking = decode_request(request(*(numbered(GET, batch_id) for batch_id in ids)))
        answer = decode_response(response(*(success(GET, batch_id) for batch_id in reversed(ids))))
        assert is_answer_to(answer, asking)
        return lambda: is_answer_to(answer, asking)

    assert grows_in_proportion(match)


# Unique Identifier ----------------------------------------------------------------------------------------------------

A: Final = "0ce22a4c-93b5-46b1-9e0d-8b3ec1e8ab5f"
B: Final = "d6e1b7a0-1c5e-4f0a-9a7e-1d2f3c4b5a69"
OBJECT_TYPE: Final = ttlv.enumeration(Tag.OBJECT_TYPE, 2)
KEY: Final = ttlv.octets(Tag.KEY_MATERIAL, bytes(32))
PRIVATE, PUBLIC = Tag.PRIVATE_KEY_UNIQUE_IDENTIFIER, Tag.PUBLIC_KEY_UNIQUE_IDENTIFIER

Item = tuple[int, tuple[bytes, ...]]


def asking(*items: Item) -> Request:
    """A request of these operations with these payloads."""
    return decode_request(request(*(batch_item(operation(number), payload(*fields)) for number, fields in items)))


def telling(*items: Item) -> Response:
    """A response of these operations with these payloads, all of which succeeded."""
    return decode_response(response(*(success(number, None, *fields) for number, fields in items)))


def fits(number: int, named: tuple[bytes, ...], answered: tuple[bytes, ...]) -> bool:
    """Return True if an operation with a payload is answered by the same operation with another payload."""
    return is_answer_to(telling((number, answered)), asking((number, named)))


#: Operations whose response repeats the Unique Identifier that the request names, and those that make objects: the
#: specification's, written down a second time, so that a mistake in one of the tables is noticed.
REPEATING: Final = [
    Operation.CHECK,
    Operation.GET,
    Operation.GET_ATTRIBUTES,
    Operation.GET_ATTRIBUTE_LIST,
    Operation.ADD_ATTRIBUTE,
    Operation.MODIFY_ATTRIBUTE,
    Operation.DELETE_ATTRIBUTE,
    Operation.OBTAIN_LEASE,
    Operation.GET_USAGE_ALLOCATION,
    Operation.ACTIVATE,
    Operation.REVOKE,
    Operation.DESTROY,
    Operation.ARCHIVE,
    Operation.RECOVER,
    Operation.ENCRYPT,
    Operation.DECRYPT,
    Operation.SIGN,
    Operation.SIGNATURE_VERIFY,
    Operation.MAC,
    Operation.MAC_VERIFY,
    Operation.EXPORT,
    Operation.ADJUST_ATTRIBUTE,
    Operation.SET_ATTRIBUTE,
    Operation.OBLITERATE,
    Operation.DEACTIVATE,
]
MAKING: Final = [
    Operation.CREATE,
    Operation.CREATE_KEY_PAIR,
    Operation.DERIVE_KEY,
    Operation.CREATE_SPLIT_KEY,
    Operation.JOIN_SPLIT_KEY,
]
#: Of operations that set the ID Placeholder to A: the payload of the answer.
PLACEHOLDER: Final[dict[int, tuple[bytes, ...]]] = {
    Operation.CREATE: (identifier(A),),
    Operation.CREATE_KEY_PAIR: (ttlv.text(PRIVATE, A), ttlv.text(PUBLIC, B)),
    Operation.REGISTER: (identifier(A),),
    Operation.REKEY: (identifier(A),),
    Operation.REKEY_KEY_PAIR: (ttlv.text(PRIVATE, A), ttlv.text(PUBLIC, B)),
    Operation.DERIVE_KEY: (identifier(A),),
    Operation.CERTIFY: (identifier(A),),
    Operation.RECERTIFY: (identifier(A),),
    Operation.LOCATE: (identifier(A),),
    Operation.JOIN_SPLIT_KEY: (identifier(A),),
}


def each(operations: Iterable[int]) -> pytest.MarkDecorator:
    """Run a test with each of these operations."""
    return pytest.mark.parametrize("number", sorted(operations), ids=lambda number: Operation(number).name)


@each(REPEATING)
def test_an_answer_about_another_object_is_refused(number: int) -> None:
    assert fits(number, (identifier(A),), (identifier(A), KEY))
    assert not fits(number, (identifier(A),), (identifier(B), KEY))


@each({*Operation} - {*REPEATING})
def test_an_operation_that_gives_identifiers_of_its_own_may_give_any(number: int) -> None:
    assert fits(number, (identifier(A),), (identifier(B),))


def test_an_answer_about_the_object_may_have_its_type_first() -> None:
    assert fits(GET, (identifier(A),), (OBJECT_TYPE, identifier(A), KEY))
    assert not fits(GET, (identifier(A),), (OBJECT_TYPE, identifier(B), KEY))
    assert fits(GET, (identifier(A),), (raw(VENDOR_TAG, 8, 8, bytes(8)), OBJECT_TYPE, identifier(A), KEY))
    assert not fits(GET, (identifier(A),), (raw(VENDOR_TAG, 8, 8, bytes(8)), OBJECT_TYPE, identifier(B), KEY))


def test_an_identifier_that_begins_like_the_other_is_another() -> None:
    assert not fits(GET, (identifier("1"),), (OBJECT_TYPE, identifier("12"), KEY))
    assert not fits(GET, (identifier("12"),), (OBJECT_TYPE, identifier("1"), KEY))
    assert not fits(GET, (identifier("key"),), (identifier("KEY"), KEY))
    assert not fits(GET, (identifier("key"),), (identifier(" key"), KEY))


def test_an_answer_that_names_another_object_first_is_refused() -> None:
    assert not fits(GET, (identifier("1"),), (identifier("2"), identifier("1"), KEY))
    assert not fits(GET, (identifier(A), identifier("1")), (identifier("2"), identifier(A), identifier("1")))


def test_an_identifier_inside_of_the_object_does_not_count() -> None:
    wrapping = ttlv.structure(Tag.KEY_WRAPPING_DATA, identifier(A))

    assert not fits(GET, (identifier(A),), (OBJECT_TYPE, wrapping, identifier(B), KEY))
    assert not fits(GET, (identifier(A),), (ttlv.structure(VENDOR_TAG, identifier(A)), identifier(B), KEY))


def test_a_padding_that_was_counted_in_does_not_count() -> None:
    counted_in = raw(Tag.UNIQUE_IDENTIFIER, ItemType.TEXT_STRING, 8, b"key-1\0\0\0")

    assert fits(GET, (counted_in,), (identifier("key-1"), KEY))
    assert fits(GET, (identifier("key-1"),), (counted_in, KEY))
    assert not fits(GET, (counted_in,), (identifier("key-2"), KEY))


def test_the_case_of_a_uuid_does_not_count() -> None:
    assert fits(GET, (identifier(A.upper()),), (OBJECT_TYPE, identifier(A), KEY))
    assert fits(GET, (identifier(A),), (OBJECT_TYPE, identifier(A.upper()), KEY))
    assert not fits(GET, (identifier(A.upper()),), (OBJECT_TYPE, identifier(B), KEY))
    assert not fits(GET, (identifier(A.replace("-", "")),), (OBJECT_TYPE, identifier(A), KEY))


def test_a_server_that_leaves_the_identifier_out_is_believed() -> None:
    assert fits(GET, (identifier(A),), (OBJECT_TYPE, KEY))
    assert fits(GET, (identifier(A),), (identifier(""), KEY))
    assert fits(Operation.DESTROY, (identifier(A),), ())


@each(REPEATING)
def test_any_object_may_be_meant_if_the_request_names_none(number: int) -> None:
    assert fits(number, (), (identifier(A),))
    assert fits(number, (identifier(""),), (identifier(A),))


def test_a_list_of_tags_in_the_place_of_an_identifier_may_mean_any_object() -> None:
    assert fits(GET, (identifier('["disk", "7"]'),), (OBJECT_TYPE, identifier(A), KEY))


def test_several_objects_may_be_named_and_no_others_answered() -> None:
    both = (identifier(A), identifier(B))

    assert fits(Operation.CHECK, both, both)
    assert fits(Operation.CHECK, both, (identifier(B), identifier(A)))
    assert fits(Operation.CHECK, both, (identifier(B),))
    assert not fits(Operation.CHECK, both, (identifier(B), identifier("3")))


def test_a_payload_that_cannot_be_read_is_no_answer() -> None:
    overrun = raw(Tag.KEY_MATERIAL, ItemType.BYTE_STRING, 80, bytes(8))

    assert not fits(GET, (identifier(A),), (overrun,))
    assert fits(GET, (identifier(A),), (identifier(A), overrun))  # the identifier has been read
    assert fits(GET, (overrun,), (identifier(A),))  # the server may have read something else


def test_a_failure_needs_no_identifier() -> None:
    failure = compose.failure(asking((GET, (identifier(A),))), ResultReason.ITEM_NOT_FOUND, "no such key")

    assert is_answer_to(decode_response(failure), asking((GET, (identifier(A),))))


# Batches and the ID Placeholder ---------------------------------------------------------------------------------------


def test_each_item_of_a_batch_is_compared() -> None:
    question = asking((GET, (identifier(A),)), (GET, (identifier(B),)))

    assert is_answer_to(telling((GET, (identifier(A),)), (GET, (identifier(B),))), question)
    assert not is_answer_to(telling((GET, (identifier(B),)), (GET, (identifier(A),))), question)
    assert not is_answer_to(telling((GET, (identifier(A),)), (GET, (identifier(A),))), question)
    assert is_answer_to(telling((GET, (identifier(A),))), question)
    assert not is_answer_to(telling((GET, (identifier(B),))), question)


def test_answers_in_any_order_are_matched_by_unique_batch_item_id() -> None:
    ids = [(b"1", A), (b"2", B)]
    question = decode_request(
        request(
            *(
                batch_item(operation(), ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, one), payload(identifier(name)))
                for one, name in ids
            )
        )
    )

    def answer(*told: tuple[bytes, str]) -> Response:
        return decode_response(response(*(success(GET, one, identifier(name)) for one, name in told)))

    assert is_answer_to(answer((b"2", B), (b"1", A)), question)
    assert not is_answer_to(answer((b"2", A), (b"1", B)), question)
    assert not is_answer_to(answer((b"1", A), (b"1", A)), question)


@each(PLACEHOLDER)
def test_an_operation_that_sets_the_id_placeholder_says_which_object_follows(number: int) -> None:
    question = asking((number, ()), (GET, ()))
    made = PLACEHOLDER[number]

    assert is_answer_to(telling((number, made), (GET, (identifier(A),))), question)
    assert not is_answer_to(telling((number, made), (GET, (identifier(B),))), question)


def test_the_id_placeholder_outlives_operations_that_repeat_it() -> None:
    question = asking((CREATE, ()), (Operation.ACTIVATE, ()), (GET, (identifier(B),)), (GET, ()))
    begin: list[Item] = [(CREATE, (identifier(A),)), (Operation.ACTIVATE, (identifier(A),)), (GET, (identifier(B),))]

    assert is_answer_to(telling(*begin, (GET, (identifier(A),))), question)
    assert not is_answer_to(telling(*begin, (GET, (identifier(B),))), question)


@pytest.mark.parametrize(
    "before",
    [
        (Operation.LOCATE, (identifier(A), identifier(B))),
        (Operation.LOCATE, ()),
        (Operation.CREATE_SPLIT_KEY, (identifier(A), identifier(B))),
        (Operation.QUERY, ()),
        (0x80000001, (identifier(A),)),
    ],
    ids=["two found", "none found", "split key", "query", "vendor's"],
)
def test_any_object_may_follow_if_the_id_placeholder_is_not_known(before: Item) -> None:
    question = asking((CREATE, ()), (before[0], ()), (GET, ()))

    assert is_answer_to(telling((CREATE, (identifier(A),)), before, (GET, (identifier("3"),))), question)


def test_any_object_may_follow_an_operation_that_failed() -> None:
    question = asking((CREATE, ()), (CREATE, ()), (GET, ()))
    failed = batch_item(
        operation(CREATE),
        ttlv.enumeration(Tag.RESULT_STATUS, ResultStatus.OPERATION_FAILED),
        ttlv.enumeration(Tag.RESULT_REASON, ResultReason.GENERAL_FAILURE),
    )

    answer = response(success(CREATE, None, identifier(A)), failed, success(GET, None, identifier(B)))

    assert is_answer_to(decode_response(answer), question)


def test_numbers_stand_for_objects_of_the_batch() -> None:
    """2.1 section 11.61: an enumeration names the object of an operation, an integer counts them."""
    placeholder = ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, 1)
    for number in (ttlv.integer(Tag.UNIQUE_IDENTIFIER, 0), ttlv.enumeration(Tag.UNIQUE_IDENTIFIER, 3), placeholder):
        question = asking((CREATE, ()), (GET, (number,)))
        assert is_answer_to(telling((CREATE, (identifier(A),)), (GET, (identifier(A),))), question)
        assert not is_answer_to(telling((CREATE, (identifier(A),)), (GET, (identifier(B),))), question)
        assert fits(GET, (number,), (identifier(B),))  # alone, it may stand for any


def test_a_number_stands_for_an_object_of_any_earlier_answer() -> None:
    number = ttlv.integer(Tag.UNIQUE_IDENTIFIER, 0)
    question = asking((CREATE, ()), (GET, (identifier(B),)), (GET, (number,)), (GET, (number,)))

    def answer(third: str, fourth: str) -> Response:
        made, got = (CREATE, (identifier(A),)), (GET, (identifier(B),))
        return telling(made, got, (GET, (identifier(third),)), (GET, (identifier(fourth),)))

    for objects in ((A, B), (B, A), (A, A), (B, B)):
        assert is_answer_to(answer(*objects), question)
    assert not is_answer_to(answer("other", A), question)
    assert not is_answer_to(answer(A, "other"), question)


def test_payloads_of_answers_are_read_only_if_a_number_refers_to_them() -> None:
    def compare(last: bytes, fields: int) -> int:
        question = asking((GET, (identifier(A),)), (GET, (identifier(A),)), (GET, (last,)))
        long = (GET, (identifier(A), *[KEY] * fields))
        answer = telling(long, long, (GET, (identifier(A), KEY)))
        return steps(lambda: is_answer_to(answer, question))

    assert compare(identifier(A), 10) == compare(identifier(A), 1000)
    number = ttlv.integer(Tag.UNIQUE_IDENTIFIER, 0)
    assert compare(number, 10) < compare(number, 1000)


def test_comparing_identifiers_takes_steps_in_proportion_to_the_batch() -> None:
    def compare(size: int) -> Callable[[], object]:
        number = ttlv.integer(Tag.UNIQUE_IDENTIFIER, 0)
        question = asking((CREATE, ()), *[(GET, (number,))] * size, (GET, (identifier(A),) * size))
        answer = telling((CREATE, (identifier(A),)), *[(GET, (identifier(A),))] * size, (GET, (identifier(A),) * size))
        assert is_answer_to(answer, question)
        return lambda: is_answer_to(answer, question)

    assert grows_in_proportion(compare)


# Key managers that permute, repeat and shift answers ------------------------------------------------------------------

names = st.sampled_from([A, B, "1", "12", "key"])
items = st.tuples(st.sampled_from([GET, Operation.GET_ATTRIBUTES, Operation.DECRYPT]), names)
batches = st.lists(st.lists(items, min_size=1, max_size=4), min_size=2, max_size=6)


def key_of(name: str) -> bytes:
    return ttlv.octets(Tag.KEY_MATERIAL, b"the key of " + name.encode())


@given(batches, st.booleans(), st.data())
def test_no_answer_with_a_wrong_key_passes(
    batches: list[list[tuple[int, str]]], numbered: bool, data: st.DataObject
) -> None:
    """However a key manager mixes its answers, each key that passes belongs to the object at its position."""
    ids = [b"%d" % place if numbered else None for place in range(4)]
    answers = [
        [success(number, ids[place], identifier(name), key_of(name)) for place, (number, name) in enumerate(batch)]
        for batch in batches
    ]
    pool = [item for batch in answers for item in batch]
    for batch in batches:
        question = decode_request(
            request(
                *(
                    batch_item(
                        operation(number),
                        *([ttlv.octets(Tag.UNIQUE_BATCH_ITEM_ID, b"%d" % place)] if numbered else []),
                        payload(identifier(name)),
                    )
                    for place, (number, name) in enumerate(batch)
                )
            )
        )
        told = data.draw(st.one_of(st.sampled_from(answers), st.lists(st.sampled_from(pool), min_size=1, max_size=4)))
        answer = decode_response(response(*data.draw(st.permutations(told))))
        if not is_answer_to(answer, question):
            continue
        for place, item in enumerate(answer.items):
            at = place if item.unique_batch_item_id is None else int(item.unique_batch_item_id)
            if len(answer.items) == len(batch) or numbered:
                assert item.unique_identifiers == [batch[at][1].encode()]
            assert item.operation in {number for number, _ in batch}
            assert item.unique_identifiers[0].decode() in {name for _, name in batch}


# Objects that were made -----------------------------------------------------------------------------------------------


def is_repeated(made: MadeObjects, *items: Item) -> bool:
    """Return True if one of these answers gives an object that was made before."""
    return made.were_made_before(telling(*items), asking(*((number, ()) for number, _ in items)))


@each(MAKING)
def test_an_object_cannot_be_made_twice(number: int) -> None:
    made = MadeObjects()

    assert not is_repeated(made, (number, (identifier(A),)))
    assert not is_repeated(made, (number, (identifier(B),)))
    assert is_repeated(made, (number, (identifier(A),)))
    assert is_repeated(made, (number, (identifier("3"),)), (number, (identifier(B),)))
    assert repr(made) == "<MadeObjects, the latest 2>"


def test_a_key_pair_cannot_be_made_twice() -> None:
    made = MadeObjects()
    pair = (ttlv.text(PRIVATE, A), ttlv.text(PUBLIC, B))

    assert not is_repeated(made, (Operation.CREATE_KEY_PAIR, pair))
    assert is_repeated(made, (Operation.CREATE_KEY_PAIR, pair))


@each({*Operation} - {*MAKING})
def test_an_operation_that_makes_no_object_may_be_answered_twice_alike(number: int) -> None:
    made = MadeObjects()

    assert not is_repeated(made, (number, (identifier(A),)))
    assert not is_repeated(made, (number, (identifier(A),)))


def test_an_identifier_that_the_client_has_chosen_may_be_given_again() -> None:
    made, chosen = MadeObjects(), asking((CREATE, (identifier(A),)))

    assert not made.were_made_before(telling((CREATE, (identifier(A),))), chosen)
    assert not made.were_made_before(telling((CREATE, (identifier(A),))), chosen)
    assert not is_repeated(made, (CREATE, (identifier(A),)))
    assert is_repeated(made, (CREATE, (identifier(A),)))


def test_a_poll_may_be_answered_twice_alike() -> None:
    made, answer = MadeObjects(), telling((CREATE, (identifier(A),)))

    assert not made.were_made_before(answer, asking((CREATE, ())))
    assert not made.were_made_before(answer, asking((POLL, ())))
    assert made.were_made_before(answer, asking((CREATE, ())))


def test_the_latest_objects_are_remembered() -> None:
    made = MadeObjects()
    for number in range(1000):
        assert not is_repeated(made, (CREATE, (identifier(f"{number}"),)))

    assert is_repeated(made, (CREATE, (identifier("999"),)))
    assert not is_repeated(made, (CREATE, (identifier("0"),)))
    assert repr(made) == "<MadeObjects, the latest 32>"
