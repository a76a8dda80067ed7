"""The check of a client's certificate without a handshake says what a handshake does."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from kmip_lab.certs import Authority

from gateway.tls import client_context, verify_client
from tests.kit.handshakes import reasons
from tests.kit.processes import HOSTS, Certificates
from tests.kit.streams import server_tls, shaken

Make = Callable[[Certificates, tuple[Path, Path]], None]


def good(certificates: Certificates, pair: tuple[Path, Path]) -> None:
    certificates.clients_ca.issue_client("good").write(*pair)


def foreign(_certificates: Certificates, pair: tuple[Path, Path]) -> None:
    Authority("Clients CA").issue_client("foreign").write(*pair)


def expired(certificates: Certificates, pair: tuple[Path, Path]) -> None:
    ended = datetime.now(UTC) - timedelta(days=1)
    certificates.clients_ca.issue_client("old", not_before=ended - timedelta(days=1), not_after=ended).write(*pair)


def early(certificates: Certificates, pair: tuple[Path, Path]) -> None:
    begins = datetime.now(UTC) + timedelta(days=1)
    certificates.clients_ca.issue_client("early", not_before=begins).write(*pair)


def server(certificates: Certificates, pair: tuple[Path, Path]) -> None:
    certificates.clients_ca.issue_server("server", HOSTS).write(*pair)


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (good, None, ""),
        (foreign, "unknown_ca", "unable to get local issuer certificate"),
        (expired, "expired", "certificate has expired"),
        (early, "not_yet_valid", "certificate is not yet valid or the system clock is incorrect"),
        (server, "purpose", "unsuitable certificate purpose"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_the_check_and_a_handshake_agree(
    certificates: Certificates, make: Make, reason: str | None, said: str
) -> None:
    pair = certificates.pair(f"checked-{make.__name__}")
    make(certificates, pair)
    chain = x509.load_pem_x509_certificates(pair[0].read_bytes())

    refusal, verified = verify_client(server_tls(certificates), chain)
    assert refusal == said
    root = x509.load_pem_x509_certificate(certificates.clients_ca.certificate_pem)
    assert verified == ([] if said else [chain[0], root])

    context = client_context(*pair, certificates.path("gateway_ca.pem"))
    if reason is None:
        async with shaken(server_tls(certificates), context):
            pass
    else:
        assert await reasons(server_tls(certificates), context) == [reason, "alert"]
