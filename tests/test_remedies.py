"""Remedies: every reason with which a session can't be opened has one."""

import pytest

from gateway.remedies import REMEDIES, remedy_for
from gateway.tls import openssl
from gateway.upstream import open_session


@pytest.mark.parametrize(
    "reason",
    sorted(
        {reason for _, reason in openssl._REASONS} - {"no_certificate"}
        | set(openssl._VERIFY_REASONS.values())
        | open_session._TLS_REASONS
        | {"connect", "resources", "timeout", "credential", "validation", "records", "certificate", "tls", "lapsed"}
    ),
)
def test_every_reason_has_a_remedy(reason: str) -> None:
    assert reason in REMEDIES


def test_an_unknown_reason_has_advice_too() -> None:
    assert remedy_for("unexpected").startswith("read the key manager's own log")
