"""A backend without costs, as a process."""

from pathlib import Path

from kmip_lab.compare import wire
from kmip_lab.tools.clients import connect
from kmip_lab.tools.programs import free_address, program, wait_until_listening

from gateway.kmip.spec import ResultStatus
from gateway.tls import client_context
from lab.tests.kit.backends import backend_command


async def test_a_backend_answers_gets_on_one_session(certificates: Path) -> None:
    address = free_address()
    context = client_context(
        certificates / "gateway-client.pem", certificates / "gateway-client.key", certificates / "kms-ca.pem"
    )
    async with program("backend", backend_command(certificates, address)):
        await wait_until_listening([address])
        async with connect(address, context, server_name="localhost") as client:
            for _ in range(2):
                assert (await client.ask(wire.REQUEST)).items[0].status == ResultStatus.SUCCESS
