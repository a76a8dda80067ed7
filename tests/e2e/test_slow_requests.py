"""The line ``slow request``: its stages have the times for which the simulated key manager was told to wait."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kmip.core.enums import CryptographicAlgorithm
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

_EARLY = 10  # ms by which clocks and rounding may differ
_LATE = 2000  # ms that a busy machine may add

FIELDS = {"timestamp", "level", "event", "component", "listener", "peer", "identity", "operation", "result"} | {
    "backend",
    "tries",
    "total_ms",
    "queue_ms",
    "connect_ms",
    "backend_ms",
}


@pytest.fixture
def key_manager(certificates: Certificates) -> Iterator[KeyManagerProcess]:
    with running_key_manager_processes(certificates, ["kms-1"]) as (found,):
        yield found


@pytest.fixture(params=[0, 2])
def gateway(
    certificates: Certificates, key_manager: KeyManagerProcess, request: pytest.FixtureRequest
) -> Iterator[Gateway]:
    settings = GatewaySettings([key_manager.port], backend="max_sessions = 1", tls_workers=request.param)
    settings.extra = "[health]\ninterval = 60\n[pool]\nvalidate_after = 0.3\n"
    settings.extra += '[log]\nformat = "json"\nslow_request = 0.5\n'
    with running_gateway(certificates, settings) as gateway:
        yield gateway


def lines(gateway: Gateway) -> list[Any]:
    found = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == "slow request"]


def slow(key_manager: KeyManagerProcess, **seconds: float) -> None:
    key_manager.set_faults(
        *(
            FaultSetting(Fault.SLOW, seconds=number, operations=frozenset({Operation[name]}))
            for name, number in seconds.items()
        )
    )
    time.sleep(0.3)


def check(line: Any, *, queue: float, connect: float, backend: float) -> None:
    """Compare the stages with seconds; a stage of 0 has no time at all."""
    expected = {"queue_ms": queue, "connect_ms": connect, "backend_ms": backend, "total_ms": queue + connect + backend}
    for name, seconds in expected.items():
        if seconds:
            assert seconds * 1000 - _EARLY <= line[name] <= seconds * 1000 + _LATE, (name, line)
        else:
            assert line[name] == 0, (name, line)
    assert sum(line[name] for name in ("queue_ms", "connect_ms", "backend_ms")) <= line["total_ms"] + 0.2


def test_stages_have_the_times_for_which_the_key_manager_waits(
    gateway: Gateway, key_manager: KeyManagerProcess
) -> None:
    with gateway.client("one") as one, gateway.client("two") as two:
        identifier = one.create(CryptographicAlgorithm.AES, 256)
        slow(key_manager, GET=1.3)
        waiting = threading.Thread(target=two.get, args=(identifier,))
        waiting.start()
        one.get(identifier)
        waiting.join()
        wait_until(lambda: len(lines(gateway)) == 2, "two lines")
        slow(key_manager, DISCOVER_VERSIONS=0.8, CREATE=0.7)  # the idle session is validated before a change
        time.sleep(0.5)
        one.create(CryptographicAlgorithm.AES, 256)
        wait_until(lambda: len(lines(gateway)) == 3, "the third line")
        slow(key_manager)
        one.get(identifier)
    first, second, third = lines(gateway)
    for line in (first, second, third):
        assert set(line) == FIELDS
        assert line["peer"].startswith("127.0.0.1:")
        about = [line[name] for name in ("level", "identity", "backend", "result", "tries")]
        assert about == ["info", "everyone", "kms-1", "success", 1]
    assert [line["operation"] for line in (first, second, third)] == ["Get", "Get", "Create"]
    check(first, queue=0, connect=0, backend=1.3)
    check(second, queue=0.65, connect=0, backend=1.3)  # it came at some time while the first was under way
    check(third, queue=0, connect=0.8, backend=0.7)


def test_a_reload_changes_the_bound_of_slow_requests(
    gateway: Gateway, key_manager: KeyManagerProcess, certificates: Certificates
) -> None:
    config: Path = certificates.path(f"gateway-{gateway.port}.toml")

    def reload(before: str, after: str, number: int) -> None:
        config.write_text(config.read_text().replace(before, after))
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.log.read_text().count("configuration reloaded") == number, "the reload")

    with gateway.client() as client:
        identifier = client.create(CryptographicAlgorithm.AES, 256)
        slow(key_manager, GET=0.7)
        reload("slow_request = 0.5", "slow_request = 0", 1)
        client.get(identifier)
        assert lines(gateway) == []
        reload("slow_request = 0", "slow_request = 0.6", 2)
        client.get(identifier)
        wait_until(lambda: len(lines(gateway)) == 1, "the line")
