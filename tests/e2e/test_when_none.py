"""All key managers are down: a gateway refuses new connections, and with `when_none = "answer"` it answers."""

import socket
import time
from collections.abc import Iterator

import pytest
import trio
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)

QUICK = """
[failover]
max_ejection_time = 0.5
{when_none}
[health]
interval = 0.2
timeout = 1
rise = 1
fall = 2
"""
REFUSING = b"refusing new connections"
ACCEPTING = b"accepting new connections again"


@pytest.fixture
def key_manager(certificates: Certificates) -> Iterator[KeyManagerProcess]:
    with running_key_manager_processes(certificates, ["kms-1"]) as (running,):
        yield running


def refuses(gateway: Gateway) -> bool:
    """True if a connection is refused; neither a reset nor a time-out is a refusal."""
    try:
        socket.create_connection((gateway.address.host, gateway.address.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def accepting(gateway: Gateway) -> float:
    return gateway.metrics()['kmip_gateway_accepting{listener="kmip"}']


def result(response: Response) -> tuple[int, int | None]:
    return response.items[0].status, response.items[0].reason


async def test_new_connections_are_refused_while_no_key_manager_can_be_reached(
    certificates: Certificates, key_manager: KeyManagerProcess
) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("gateway_ca.pem"))
    closes = GatewaySettings([key_manager.port], extra=QUICK.format(when_none=""))
    answers = GatewaySettings([key_manager.port], extra=QUICK.format(when_none='when_none = "answer"'))
    with running_gateway(certificates, closes) as closing, running_gateway(certificates, answers) as answering:
        async with connect(closing.address, context, server_name="localhost") as kept:
            assert result(await kept.ask(create_key())) == (ResultStatus.SUCCESS, None)
            assert accepting(closing) == 1

            key_manager.kill()
            killed = time.monotonic()
            await trio.to_thread.run_sync(wait_until, lambda: refuses(closing), "the refusal")
            assert time.monotonic() - killed > 4.5  # a key manager that restarts has five seconds
            assert accepting(closing) == 0
            assert not closing.is_ready()
            failure = (ResultStatus.OPERATION_FAILED, ResultReason.GENERAL_FAILURE)
            assert result(await kept.ask(create_key())) == failure  # connected clients stay, and get an error

            assert accepting(answering) == 1
            assert not answering.is_ready()
            async with connect(answering.address, context, server_name="localhost") as new:
                assert result(await new.ask(create_key())) == failure

            key_manager.launch()
            await trio.to_thread.run_sync(wait_until, lambda: not refuses(closing), "the first new connection")
            async with connect(closing.address, context, server_name="localhost") as new:
                assert result(await new.ask(create_key())) == (ResultStatus.SUCCESS, None)
            assert result(await kept.ask(create_key())) == (ResultStatus.SUCCESS, None)
            assert closing.is_ready()
        log = closing.log.read_bytes()
        assert (log.count(REFUSING), log.count(ACCEPTING)) == (1, 1)
        assert REFUSING not in answering.log.read_bytes()


def test_a_gateway_that_refuses_connections_ends_at_sigterm(
    certificates: Certificates, key_manager: KeyManagerProcess
) -> None:
    settings = GatewaySettings([key_manager.port], extra=QUICK.format(when_none=""))
    with running_gateway(certificates, settings) as gateway:
        key_manager.kill()
        wait_until(lambda: refuses(gateway), "the refusal")
        gateway.process.terminate()
        assert gateway.process.wait(10) == 0
        assert b"Traceback" not in gateway.log.read_bytes()
