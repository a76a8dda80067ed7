"""Request log: lines about slow requests, and the times of their stages."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from kmip_lab.tools.requests import create_key
from structlog.testing import LogCapture

from gateway import log
from gateway.dispatcher import Answer
from gateway.dispatcher.stages import Stages
from gateway.front.request_log import RequestLog, stage_fields
from gateway.policy import Refusal
from gateway.traffic import Traffic
from tests.kit.front import Front, open_front
from tests.kit.processes import Certificates


def test_stages_are_in_milliseconds_and_left_out_if_unknown() -> None:
    backend: Any = SimpleNamespace(name="kms-1")
    stages = Stages(2, ["kms-1", "kms-2"], 0.5, 0.25, 1.0)
    tried = {"tried": ["kms-1", "kms-2"]}
    times = {"total_ms": 2000.0, "queue_ms": 500.0, "connect_ms": 250.0, "backend_ms": 1000.0}
    assert stage_fields(Answer(b"", backend=backend, stages=stages), 2.0) == {
        "backend": "kms-1",
        "tries": 2,
        **tried,
        **times,
    }
    again = Stages(2, ["kms-1", "kms-1"], 0.5, 0.25, 1.0)
    assert stage_fields(Answer(b"", stages=again), 2.0) == {"backend": "kms-1", "tries": 2, **times}
    assert stage_fields(Answer(b"", stages=stages), 2.0) == {"backend": "kms-2", "tries": 2, **tried, **times}
    assert stage_fields(Answer(b"", backend=backend), 2.0) == {"backend": "kms-1", "tries": 1, "total_ms": 2000.0}
    assert stage_fields(Answer(b""), 2.0) == {"total_ms": 2000.0}


@pytest.mark.usefixtures("clock")
async def test_only_requests_that_take_slow_request_are_logged(certificates: Certificates) -> None:
    async with open_front(certificates) as front, front.client() as client:
        await client.ask(create_key())
        await ask_slowly(front, client, 0.9)
        assert slow(front) == []
        await ask_slowly(front, client, 1.5)
        (line,) = slow(front)
        assert (line["operation"], line["result"], line["log_level"]) == ("Create", "success", "info")
        assert 1500 <= line["total_ms"] < 2000


def test_an_outage_of_many_identities_does_not_flood_the_log() -> None:
    said = LogCapture()
    logger = structlog.wrap_logger(None, processors=[said])
    request_log = RequestLog()
    answer = Answer(b"", refusal=Refusal.NO_BACKEND, detail="no key manager can be reached")
    began = time.monotonic()
    for number in range(1000):
        about = {"peer": "192.0.2.1:1", "identity": f"identity-{number % 200}", "operation": "Get"}
        request_log.refused(logger, about, answer, 0.1, {})
        request_log.answered(logger, about, "success", answer, 2.0)
    assert 20 <= len(said.entries) <= 20 * (1 + int(time.monotonic() - began))


def test_every_request_has_a_line_at_level_debug_until_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said = LogCapture()
    logger = structlog.wrap_logger(None, processors=[said])
    request_log = RequestLog()
    answer = Answer(b"", refusal=Refusal.NO_BACKEND, detail="no key manager can be reached")
    about = {"peer": "192.0.2.1:1", "identity": "arrays", "operation": "Get"}

    def say() -> list[tuple[str, str]]:
        said.entries.clear()
        for seconds in (0.1, 2.0, 2.0):
            if seconds >= request_log.logged_from:
                request_log.answered(logger, about, "success", Answer(b""), seconds)
            request_log.refused(logger, about, answer, None, {})
        return [(entry["event"], entry["log_level"]) for entry in said.entries]

    slow, refused = ("slow request", "info"), ("request refused", "warning")
    answered, refused_again = ("request answered", "debug"), ("request refused", "debug")
    monkeypatch.setattr(log, "_debug", [])
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert say() == [refused, slow]
    log.begin_debug(Traffic(), 60.0)
    request_log.settings_changed()
    assert say() == [answered, refused_again] * 3
    monkeypatch.setattr(time, "monotonic", lambda: 1061.0)
    assert say() == [refused, slow]
    assert request_log.logged_from == 1.0


async def ask_slowly(front: Front, client: Any, seconds: float) -> None:
    front.dispatcher.close_gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, create_key())
        await trio.sleep(seconds)
        front.dispatcher.gate.set()


def slow(front: Front) -> list[Any]:
    return [entry for entry in front.log.entries if entry["event"] == "slow request"]
