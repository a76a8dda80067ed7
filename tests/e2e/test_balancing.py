"""Tiers, roles, standby nodes and limits, with real programs."""

import threading
from collections.abc import Iterator

import pytest
from kmip.core import enums
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.faults import Fault, FaultSetting

from gateway.kmip.spec import Operation
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)

QUICK_PROBES = """
[health]
interval = 0.2
timeout = 1
rise = 1
fall = 2
"""


@pytest.fixture
def key_managers(certificates: Certificates) -> Iterator[list[KeyManagerProcess]]:
    with running_key_manager_processes(certificates, ["kms-1", "kms-2"]) as running:
        yield running
        for key_manager in running:
            key_manager.set_faults()


def settings(
    key_managers: list[KeyManagerProcess], *, each: list[str], extra: str = "", identity: str = ""
) -> GatewaySettings:
    return GatewaySettings(
        [key_manager.port for key_manager in key_managers], backend_each=each, extra=extra, identity=identity
    )


def answered(gateway: Gateway, backend: str) -> float:
    return gateway.total("kmip_gateway_backend_requests_total", backend=backend, result="answered")


def state(gateway: Gateway, backend: str) -> str:
    samples = gateway.metrics()
    return next(
        name
        for name in ("up", "standby", "down", "ejected")
        if samples[f'kmip_gateway_backend_state{{backend="{backend}",state="{name}"}}']
    )


def test_a_lower_tier_serves_only_while_the_higher_is_down(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    with (
        running_gateway(
            certificates, settings(key_managers, each=["priority = 0", "priority = 1"], extra=QUICK_PROBES)
        ) as gateway,
        gateway.client() as client,
    ):
        for _ in range(10):
            client.locate()
        assert (answered(gateway, "kms-1"), answered(gateway, "kms-2")) == (10, 0)
        key_managers[0].kill()
        for _ in range(10):
            client.locate()
        assert answered(gateway, "kms-2") == 10
        key_managers[0].launch()
        wait_until(lambda: gateway.total("kmip_gateway_backend_up", backend="kms-1") == 1, "the first tier's return")
        before = answered(gateway, "kms-2")
        for _ in range(10):
            client.locate()
        assert answered(gateway, "kms-2") == before


def test_changes_go_to_backends_with_the_role_rw(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    with (
        running_gateway(certificates, settings(key_managers, each=['role = "ro"', 'role = "rw"'])) as gateway,
        gateway.client() as client,
    ):
        for _ in range(6):
            client.create(enums.CryptographicAlgorithm.AES, 128)
        assert (answered(gateway, "kms-1"), answered(gateway, "kms-2")) == (0, 6)
        for _ in range(6):
            client.locate()
        assert answered(gateway, "kms-1") == 3


def test_a_standby_joins_when_it_is_promoted(certificates: Certificates, key_managers: list[KeyManagerProcess]) -> None:
    extra = QUICK_PROBES + 'expect_text = "ServerType=master"\n'
    key_managers[1].set_faults(FaultSetting(Fault.STANDBY))
    with running_gateway(certificates, settings(key_managers, each=["", ""], extra=extra)) as gateway:
        wait_until(lambda: state(gateway, "kms-2") == "standby", "the standby's being seen")
        with gateway.client() as client:
            for _ in range(6):
                client.create(enums.CryptographicAlgorithm.AES, 128)
            assert (answered(gateway, "kms-1"), answered(gateway, "kms-2")) == (6, 0)
            key_managers[1].set_faults()
            wait_until(lambda: state(gateway, "kms-2") == "up", "the promoted node's joining")
            for _ in range(6):
                client.create(enums.CryptographicAlgorithm.AES, 128)
            assert answered(gateway, "kms-2") == 3


def test_a_client_above_its_rate_gets_an_error_at_once(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    identity = "requests_per_second = 1\nrequest_burst = 5"
    with (
        running_gateway(certificates, settings(key_managers, each=["", ""], identity=identity)) as gateway,
        gateway.client() as client,
    ):
        told = []
        for _ in range(20):
            try:
                client.locate()
            except KmipOperationFailure as failure:
                told.append(failure)
        assert 13 <= len(told) <= 15
        assert {failure.reason for failure in told} == {enums.ResultReason.GENERAL_FAILURE}
        assert gateway.total("kmip_gateway_limit_rejections_total", limit="requests_per_second") == len(told)
        with gateway.client("another") as other:  # a principal of its own
            other.locate()


def test_a_crowd_of_one_client_does_not_starve_another(
    certificates: Certificates, key_managers: list[KeyManagerProcess]
) -> None:
    """One session, kept busy by many requests of a client: a request of a second client comes next but one."""
    for key_manager in key_managers:
        key_manager.set_faults(FaultSetting(Fault.SLOW, seconds=0.1, operations=frozenset({Operation.LOCATE})))
    with running_gateway(
        certificates, settings(key_managers, each=["max_sessions = 1", "max_sessions = 1"])
    ) as gateway:
        ended = threading.Event()
        gateway.certificates.client("busy")  # made here, a single time

        def crowd() -> None:
            with gateway.client("busy") as client:
                while not ended.is_set():
                    client.locate()

        threads = [threading.Thread(target=crowd) for _ in range(16)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: gateway.total("kmip_gateway_pool_waiters") > 8, "the queue")
            with gateway.client("calm") as calm:
                for _ in range(5):
                    calm.locate()
                    assert gateway.total("kmip_gateway_pool_waiters") > 5
        finally:
            ended.set()
            for thread in threads:
                thread.join()
