"""Errors of OpenSSL, by kind."""

import pytest
from kmip_lab.speed.errors import REFUSED, OperationError, operation_error
from OpenSSL import SSL

from gateway.config import Address

HERE = Address("127.0.0.1", 5696)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SSL.WantReadError(), "no answer in time"),
        (SSL.ZeroReturnError(), "handshake: closed by the server"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "handshake: closed by the server"),
        (SSL.SysCallError(104, "ECONNRESET"), "handshake: ECONNRESET"),
        (SSL.Error([("SSL routines", "", "wrong version number")]), "handshake: wrong version number"),
    ],
)
def test_an_error_of_openssl_has_a_kind(error: SSL.Error, kind: str) -> None:
    assert operation_error(error, "handshake", HERE).kind == kind


def test_only_a_refusal_leaves_the_session_usable() -> None:
    assert OperationError(f"{REFUSED}ItemNotFound", "no such key").refused
    assert not OperationError("no answer in time", "no answer").refused


def test_a_hint_follows_the_text_and_keeps_the_kind() -> None:
    hinted = OperationError("kind", "text").hinted("hint")
    assert (hinted.kind, str(hinted)) == ("kind", "text, hint")
