"""Access to the metrics: tokens and certificates."""

import hmac
from http import HTTPStatus
from typing import Any

import pytest

from gateway.admin.access import Access

TOKENS = ("0123456789abcdef-first", "0123456789abcdef-second")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_token_of_the_file_is_accepted(scheme: str, token: str) -> None:
    assert Access(TOKENS).refuse(f"{scheme} {token}", has_certificate=False) is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer 0123456789abcdef",
        "Bearer 0123456789abcdef-first-and-more",
        "Bearer 0123456789abcdef-FIRST",
        "Basic 0123456789abcdef-first",
        "0123456789abcdef-first",
        "Bearer \xff\udcff",
    ],
)
def test_anything_else_is_unauthorized_and_challenged(header: str | None) -> None:
    answer = Access(TOKENS).refuse(header, has_certificate=True)
    assert answer is not None
    assert answer.status == HTTPStatus.UNAUTHORIZED
    assert answer.headers == (("WWW-Authenticate", 'Bearer realm="kmip-gateway"'),)
    assert b"0123456789abcdef" not in answer.body


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        calls.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    assert Access(TOKENS).refuse(f"Bearer {TOKENS[0]}", has_certificate=False) is None
    assert len(calls) == len(TOKENS)
    assert {len(each) for pair in calls for each in pair} == {32}


def test_a_certificate_is_needed_besides_a_token() -> None:
    both = Access(TOKENS, needs_certificate=True)
    header = f"Bearer {TOKENS[0]}"
    refused = both.refuse(header, has_certificate=False)
    assert refused is not None
    assert refused.status == HTTPStatus.FORBIDDEN
    assert both.refuse(None, has_certificate=True) is not None
    assert both.refuse(header, has_certificate=True) is None
    assert Access(needs_certificate=True).refuse(None, has_certificate=True) is None


def test_without_tokens_and_certificates_everybody_is_served() -> None:
    assert Access().refuse(None, has_certificate=False) is None
