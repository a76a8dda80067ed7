"""Request log: lines about slow requests, and the times of their stages."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from kmip_lab.tools.requests import create_key

from gateway.dispatcher import Answer
from gateway.dispatcher.stages import Stages
from gateway.front.request_log import stage_fields
from tests.kit.front import Front, open_front
from tests.kit.processes import Certificates


def test_stages_are_in_milliseconds_and_left_out_if_unknown() -> None:
    backend: Any = SimpleNamespace(name="kms-1")
    stages = Stages(2, "kms-2", 0.5, 0.25, 1.0)
    times = {"total_ms": 2000.0, "queue_ms": 500.0, "connect_ms": 250.0, "backend_ms": 1000.0}
    assert stage_fields(Answer(b"", backend=backend, stages=stages), 2.0) == {"backend": "kms-1", "tries": 2, **times}
    assert stage_fields(Answer(b"", stages=stages), 2.0) == {"backend": "kms-2", "tries": 2, **times}
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


async def ask_slowly(front: Front, client: Any, seconds: float) -> None:
    front.dispatcher.close_gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, create_key())
        await trio.sleep(seconds)
        front.dispatcher.gate.set()


def slow(front: Front) -> list[Any]:
    return [entry for entry in front.log.entries if entry["event"] == "slow request"]
