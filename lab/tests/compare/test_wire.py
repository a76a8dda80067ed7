"""The Get of the comparison and its answers, as the gateway's own code reads them."""

from kmip_lab.compare import wire
from kmip_lab.tools.requests import key_value

from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.spec import Operation, ResultStatus, Tag


def test_the_load_is_one_get_and_one_key() -> None:
    assert len(wire.REQUEST) == 152
    assert [item.operation for item in decode_request(wire.REQUEST).items] == [Operation.GET]
    assert key_value(decode_response(wire.answer(wire.REQUEST))) == bytes(range(32))
    assert wire.SUCCESS in wire.ANSWER
    assert 300 <= len(wire.ANSWER) <= 340


def test_health_checks_of_a_gateway_are_answered() -> None:
    versions = decode_response(wire.answer(compose.discover_versions())).items[0]
    assert versions.status == ResultStatus.SUCCESS
    assert Tag.RESPONSE_PAYLOAD in versions.fields
    named = list(ttlv.walk(versions.frame, *versions.fields[Tag.RESPONSE_PAYLOAD]))
    assert {item.tag for item in named} == {Tag.PROTOCOL_VERSION}
    assert decode_response(wire.answer(compose.query())).items[0].operation == Operation.QUERY


def test_an_answer_has_the_versions_and_ids_of_its_request() -> None:
    asks = [compose.Ask(Operation.GET, b"", b"1"), compose.Ask(Operation.LOCATE, b"", b"2")]
    answer = decode_response(wire.answer(compose.encode_request((1, 4), asks)))
    assert answer.version == (1, 4)
    assert [item.unique_batch_item_id for item in answer.items] == [b"1", b"2"]
    assert [item.operation for item in answer.items] == [Operation.GET, Operation.LOCATE]


def test_a_message_that_is_no_request_is_refused() -> None:
    answer = decode_response(wire.answer(wire.ANSWER))
    assert answer.items[0].status == ResultStatus.OPERATION_FAILED


def test_the_size_of_a_message_is_in_its_header() -> None:
    assert wire.size(b"") > 0
    assert wire.size(wire.REQUEST[:7]) > 7
    assert wire.size(wire.REQUEST[:8]) == wire.size(wire.REQUEST) == 152
