"""OpenSSL's version, its texts, and the reasons of TlsErrors."""

import errno

import pytest
from OpenSSL import SSL

from gateway.errors import TlsError
from gateway.tls.openssl import (
    CLOSED_HERE,
    check_openssl,
    connection_lost,
    handshake_reason,
    is_about_certificate,
    record_reason,
    text_of,
)


def error_of(*texts: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", text) for text in texts])


def test_openssl_before_4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_openssl()
    monkeypatch.setattr(SSL, "OPENSSL_VERSION_NUMBER", 0x3050_0000)
    with pytest.raises(TlsError, match="install cryptography's own wheel"):
        check_openssl()


@pytest.mark.parametrize(
    ("text", "verification", "reason"),
    [
        ("certificate verify failed", 10, "expired"),
        ("certificate verify failed", 20, "unknown_ca"),
        ("certificate verify failed", 1000, "certificate"),
        ("no shared cipher", 10, "no_shared_cipher"),
        ("http request", 0, "not_tls"),
        ("tlsv1 alert internal error", 0, "alert"),
        ("tlsv1 alert protocol version", 0, "version"),
        ("length mismatch", 0, "tls"),
    ],
)
def test_reason_of_a_failed_handshake(text: str, verification: int, reason: str) -> None:
    assert handshake_reason(error_of(text), verification) == reason


def test_reason_of_an_error_after_the_handshake() -> None:
    assert record_reason(error_of("sslv3 alert bad certificate")) == "alert"
    assert record_reason(error_of("bad record mac")) == "tls"


@pytest.mark.parametrize(
    ("text", "is_about"),
    [
        ("ssl/tls alert certificate expired", True),
        ("ssl/tls alert bad certificate", True),
        ("tlsv1 alert unknown ca", True),
        ("ssl/tls alert handshake failure", False),
        ("tlsv1 alert internal error", False),
    ],
)
def test_alerts_about_certificates(text: str, *, is_about: bool) -> None:
    assert is_about_certificate(text) is is_about


def test_texts_of_errors() -> None:
    assert text_of(error_of("one", "two")) == "one; two"
    assert text_of(error_of("", "two")) == "two"
    assert text_of(error_of("")) == "reset by the peer"
    assert text_of(error_of()) == "unknown"
    assert text_of(SSL.SysCallError(-1, "Unexpected EOF")) == "closed by the peer"
    assert text_of(SSL.SysCallError(errno.ECONNRESET, "reset")) == "ECONNRESET"
    assert text_of(SSL.ZeroReturnError()) == "closed by the peer"
    assert text_of(SSL.Error()) == CLOSED_HERE
    assert str(connection_lost("lost", OSError(errno.EPIPE, "Broken pipe"))) == "lost: EPIPE"
