"""Clients that resume their TLS sessions, and clients that write in small parts, through a real gateway."""

import ssl
import statistics
import time
from collections.abc import Iterator

import pytest

from gateway.kmip import compose
from gateway.kmip.spec import ResultReason, ResultStatus
from tests.kit.processes import (
    TLS_WORKERS,
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)
from tests.kit.resuming import ask_in_single_records, context_of, read_response, session

HANDSHAKES = "kmip_gateway_client_handshakes_total"
DELAY = 0.04  # s: the shortest delay of an acknowledgement in Linux
PROMPT = 0.75 * DELAY  # s; an answer that takes longer met the delay. An idle machine needs a thirtieth
ROUNDS = 15
HEADER = 8  # bytes
QUERY = compose.query((1, 2))

each_version = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("resumption"))
    settings = GatewaySettings([], [Identity("known", '{ subject_cn = "client-*" }')])
    with running_key_managers(certificates) as settings.backends, running_gateway(certificates, settings) as gateway:
        yield gateway


@each_version
@pytest.mark.parametrize("tickets", [True, False], ids=["tickets", "no tickets"])
def test_a_client_that_resumes_gets_its_answer(gateway: Gateway, version: str, *, tickets: bool) -> None:
    if TLS_WORKERS and not tickets and version == "TLSv1.2":
        pytest.skip("without tickets, sessions of TLS 1.2 are stored by the worker that made them")
    context = context_of(gateway, "client-resuming", version)
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    counts = {resumed: gateway.total(HANDSHAKES, tls_version=version, resumed=resumed) for resumed in ("false", "true")}
    kept: ssl.SSLSession | None = None
    for resumed in (False, True, True, True):
        with session(gateway, context, kept) as talking:
            talking.sendall(QUERY)
            assert read_response(talking).items[0].status == ResultStatus.SUCCESS
            assert talking.session_reused is resumed
            kept = talking.session
    for label, more in [("false", 1), ("true", 3)]:
        assert gateway.total(HANDSHAKES, tls_version=version, resumed=label) == counts[label] + more


@each_version
def test_a_client_without_matching_rule_is_refused_on_a_resumed_session(gateway: Gateway, version: str) -> None:
    context = context_of(gateway, "stranger", version)
    kept: ssl.SSLSession | None = None
    for resumed in (False, True):
        with session(gateway, context, kept) as talking:
            talking.sendall(QUERY)
            assert read_response(talking).items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
            assert talking.session_reused is resumed
            kept = talking.session


@each_version
@pytest.mark.parametrize("nodelay", [False, True], ids=["Nagle", "no delay"])
def test_header_and_body_written_apart_are_answered_without_a_delay(
    gateway: Gateway, version: str, *, nodelay: bool
) -> None:
    """Without TCP_NODELAY a client's kernel holds the body back until the header is acknowledged."""
    context = context_of(gateway, "client-apart", version)
    taken = []
    with session(gateway, context, nodelay=nodelay) as talking:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            talking.sendall(QUERY[:HEADER])
            talking.sendall(QUERY[HEADER:])
            assert read_response(talking).items[0].status == ResultStatus.SUCCESS
            taken.append(time.perf_counter() - began)
    assert statistics.median(taken) < PROMPT


@each_version
def test_handshake_messages_that_are_written_apart_meet_no_delay(gateway: Gateway, version: str) -> None:
    """Without TCP_NODELAY a client's kernel holds the second message back until the first one is acknowledged."""
    context = context_of(gateway, "client-in-parts", version)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ask_in_single_records(gateway, context, QUERY)
        taken.append(time.perf_counter() - began)
    assert statistics.median(taken) < PROMPT


@each_version
def test_the_first_request_of_a_resumed_session_has_no_delay(gateway: Gateway, version: str) -> None:
    """The client writes its last handshake message and its request separately."""
    context = context_of(gateway, "client-short", version)
    kept: ssl.SSLSession | None = None
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with session(gateway, context, kept) as talking:
            talking.sendall(QUERY)
            read_response(talking)
            taken.append(time.perf_counter() - began)
            kept = talking.session
    assert statistics.median(taken[1:]) < PROMPT
