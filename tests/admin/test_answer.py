"""Answers of the admin port before they become HTTP."""

from http import HTTPStatus

from gateway.admin.answer import HttpAnswer


def test_an_answer_of_one_line_has_its_text_or_the_phrase_of_its_status() -> None:
    assert HttpAnswer.of(HTTPStatus.OK, "ok").body == b"ok\n"
    assert HttpAnswer.of(HTTPStatus.NOT_FOUND).body == b"Not Found\n"
    assert HttpAnswer.of(HTTPStatus.OK).media_type == "text/plain; charset=utf-8"
