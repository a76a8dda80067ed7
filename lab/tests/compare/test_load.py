"""The load, as a process, on a backend without costs."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import trio
from kmip_lab.compare import wire
from kmip_lab.compare.load import LoadJob, LoadResult
from kmip_lab.tools.programs import free_address, program, wait_until_listening

from lab.tests.kit.backends import backend_command


@pytest.mark.parametrize("work", ["kept", "fresh", "resumed"])
async def test_a_load_counts_its_gets(certificates: Path, work: str) -> None:
    address = free_address()
    job = LoadJob(
        work=work,
        addresses=[(address.host, address.port)],
        certificate=str(certificates / "gateway-client.pem"),
        private_key=str(certificates / "gateway-client.key"),
        ca=str(certificates / "kms-ca.pem"),
        request=wire.REQUEST.hex(),
        sessions=[],
        clients=2,
        warm_up=0.1,
        seconds=0.2,
    )
    async with program("backend", backend_command(certificates, address)):
        await wait_until_listening([address])
        command = [sys.executable, "-m", "kmip_lab.compare.load"]
        ended = await trio.run_process(command, stdin=json.dumps(asdict(job)).encode(), capture_stdout=True)
    result = LoadResult(**json.loads(ended.stdout))
    assert result.operations > 0
    assert (result.errors, result.full_handshakes) == (0, 0)
    assert 0 < result.p50 <= result.p99
