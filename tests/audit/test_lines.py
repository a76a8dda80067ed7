"""Lines of the audit trail: their members, what is cut and escaped, and what never gets in."""

import json
from collections.abc import Sequence
from typing import Any

from gateway.audit import lines
from gateway.identity import Identity, Principal
from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask, Result
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag

SECRET = b"a secret key value, 32 bytes long"


def uid(text: str) -> bytes:
    return ttlv.text(Tag.UNIQUE_IDENTIFIER, text)


def request(*asks: Ask, header: Sequence[bytes] = ()) -> Request:
    return decode_request(compose.encode_request((1, 4), asks, header=header))


def response(*results: Result) -> Response:
    return decode_response(compose.encode_response((1, 4), results))


def items(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(f"[{text}]")
    return found


def test_a_get_has_its_operation_identifier_and_status() -> None:
    asked = request(Ask(Operation.GET, uid("key-1")))
    answered = response(
        Result(ResultStatus.SUCCESS, Operation.GET, payload=uid("key-1") + ttlv.octets(Tag.KEY_MATERIAL, SECRET))
    )

    text = lines.answered_items(asked, answered)

    assert items(text) == [{"operation": "Get", "ids": ["key-1"], "status": "Success"}]


def test_a_create_has_the_identifier_of_its_answer() -> None:
    asked = request(Ask(Operation.CREATE, ttlv.enumeration(Tag.OBJECT_TYPE, 2)))
    answered = response(Result(ResultStatus.SUCCESS, Operation.CREATE, payload=uid("key-7")))

    assert items(lines.answered_items(asked, answered)) == [
        {"operation": "Create", "status": "Success", "answer_ids": ["key-7"]}
    ]


def test_a_failure_has_its_reason_and_no_message() -> None:
    asked = request(Ask(Operation.GET, uid("key-1")))
    failed = Result(ResultStatus.OPERATION_FAILED, Operation.GET, None, ResultReason.ITEM_NOT_FOUND, SECRET.decode())

    text = lines.answered_items(asked, response(failed))

    assert items(text)[0]["reason"] == "ItemNotFound"
    assert SECRET.decode() not in text


def test_each_operation_of_a_batch_has_its_own_result() -> None:
    asked = request(
        Ask(Operation.CREATE, b"", b"1"), Ask(Operation.GET, b"", b"2"), Ask(Operation.DESTROY, uid("x"), b"3")
    )
    answered = response(
        Result(ResultStatus.SUCCESS, Operation.CREATE, b"1", payload=uid("new")),
        Result(ResultStatus.OPERATION_FAILED, Operation.GET, b"2", 0x7777, "no"),
    )

    assert items(lines.answered_items(asked, answered)) == [
        {"operation": "Create", "status": "Success", "answer_ids": ["new"]},
        {"operation": "Get", "status": "OperationFailed", "reason": "0x7777"},
        {"operation": "Destroy", "ids": ["x"]},
    ]


def test_an_unknown_operation_is_a_number() -> None:
    assert items(lines.asked_items(request(Ask(0x800001)))) == [{"operation": "0x800001"}]


def test_a_get_by_id_placeholder_has_the_identifier_of_its_answer() -> None:
    asked = request(Ask(Operation.GET))
    answered = response(Result(ResultStatus.SUCCESS, Operation.GET, payload=uid("key-1")))

    assert items(lines.answered_items(asked, answered))[0]["answer_ids"] == ["key-1"]


def test_long_identifiers_and_long_lists_are_cut() -> None:
    asked = request(Ask(Operation.LOCATE))
    found = b"".join(uid(f"key-{number}") for number in range(101))
    answered = response(Result(ResultStatus.SUCCESS, Operation.LOCATE, payload=found))

    (item,) = items(lines.answered_items(asked, answered))
    assert len(item["answer_ids"]) == lines.MOST_IDENTIFIERS
    assert item["answer_ids_cut"]
    (item,) = items(lines.asked_items(request(Ask(Operation.GET, uid("x" * 5000)))))
    assert len(item["ids"][0]) == lines.LONGEST + 3


def test_control_characters_quotes_and_bytes_are_escaped() -> None:
    for value in ('a"b\\c', "a\nb\x1b[31m", "\u2028"):
        (item,) = items(lines.asked_items(request(Ask(Operation.GET, uid(value)))))
        assert item["ids"] in ([value], [f"0x{value.encode().hex()}"])
        assert "\n" not in lines.asked_items(request(Ask(Operation.GET, uid(value))))
    assert lines.value_text(b"\xff\xfe") == '"0xfffe"'


def test_an_unreadable_payload_is_marked() -> None:
    payload = uid("key-1") + ttlv.HEAD.pack(ttlv.word(Tag.UNIQUE_IDENTIFIER, 7), 4000)

    (item,) = items(lines.asked_items(request(Ask(Operation.GET, payload))))

    assert item == {"operation": "Get", "ids": ["key-1"], "ids_cut": True}


def test_a_header_gives_its_version_and_correlation_value_only() -> None:
    credential = ttlv.structure(
        Tag.AUTHENTICATION, ttlv.structure(Tag.CREDENTIAL, ttlv.text(Tag.PASSWORD, SECRET.decode()))
    )
    asked = request(Ask(Operation.GET), header=[ttlv.text(Tag.CLIENT_CORRELATION_VALUE, 'job "7"'), credential])

    text = lines.request_fields(asked)

    assert json.loads(f"{{{text}}}") == {"version": "1.4", "correlation": 'job "7"'}


def test_a_client_without_identity_has_its_fingerprint() -> None:
    facts = json.loads(f"{{{lines.client_fields('kmip', '192.0.2.1:5', 'ab', None)}}}")

    assert facts == {
        "listener": "kmip",
        "client": "192.0.2.1:5",
        "certificate": "ab",
        "identity": None,
        "issuer": None,
        "subject": None,
    }


def test_names_out_of_a_certificate_are_cut() -> None:
    principal = Principal(Identity("app", shared=False), "CN=CA", "CN=" + "x" * 60_000, 0.0, 1.0)

    assert len(lines.client_fields("kmip", "", None, principal)) < 2000


def test_members_of_an_event_are_cut_at_any_depth() -> None:
    text = lines.members({"arguments": {"backend": "x" * 70_000, "y" * 70_000: 1}, "list": ["z" * 70_000] * 1000})

    assert len(text) < 200_000
    assert set(json.loads(f"{{{text}}}")) == {"arguments", "list"}


def test_refused_and_own_answers_have_a_result_for_each_operation() -> None:
    asked = request(Ask(Operation.GET, uid("a"), b"1"), Ask(Operation.GET, uid("b"), b"2"))

    assert [item["reason"] for item in items(lines.refused_items(asked, ResultReason.GENERAL_FAILURE))] == [
        "GeneralFailure"
    ] * 2
    assert [item["status"] for item in items(lines.served_items(asked))] == ["Success"] * 2


def test_the_fast_path_takes_one_identifier_and_nothing_else() -> None:
    assert lines.only_identifier(request(Ask(Operation.GET, uid("key-1"))).items[0]) == '"key-1"'
    for payload in (b"", uid("a") + uid("b"), ttlv.enumeration(Tag.OBJECT_TYPE, 2)):
        assert lines.only_identifier(request(Ask(Operation.GET, payload)).items[0]) is None
