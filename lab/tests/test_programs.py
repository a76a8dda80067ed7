"""The programs of the demo and the measurements, with replication."""

import os
from pathlib import Path

from kmip_lab.client import client_context, connect, create_key
from kmip_lab.keymanager import two_plus_two
from kmip_lab.programs import prepare, programs

from gateway.kmip.spec import ResultStatus


async def test_key_managers_that_replicate_are_processes_of_their_own(tmp_path: Path) -> None:
    place = prepare(tmp_path)
    context = client_context(*place.pair("gateway-client"), place.file("kms-ca.pem"))
    async with programs(place, costs={"Create": 0.001}, roles=two_plus_two(0.001, 0.002)) as running:
        assert running.by_name.keys() == place.key_managers.keys()
        assert len({os.getpid(), running.gateway, *running.by_name.values()}) == 6
        for name, status in (
            ("london-001", ResultStatus.SUCCESS),
            ("london-002", ResultStatus.OPERATION_FAILED),
        ):
            async with connect(place.key_managers[name], context, server_name="localhost") as client:
                assert (await client.ask(create_key())).items[0].status == status
