"""The client of gateways and key managers."""

from pathlib import Path

import pytest
from kmip_lab.certs import DevelopmentSet
from kmip_lab.tools.clients import connect, created_key
from kmip_lab.tools.programs import free_address, key_manager_command, program, wait_until_listening
from kmip_lab.tools.requests import activate, get_key, key_value

from gateway.errors import TlsError
from gateway.kmip.spec import ResultStatus


async def test_a_key_is_created_and_read_from_a_server_of_the_right_name(certificates: Path) -> None:
    files, address = DevelopmentSet(certificates), free_address()
    context = files.gateway_context()
    async with program("key manager", key_manager_command(files, {"atlanta-001": address})):
        await wait_until_listening([address])
        uid = await created_key(address, context)
        async with connect(address, context, server_name="localhost") as client:
            assert (await client.ask(activate(uid))).items[0].status == ResultStatus.SUCCESS
            assert len(key_value(await client.ask(get_key(uid)))) == 32
        with pytest.raises(TlsError, match=r"kmip\.example\.com"):
            async with connect(address, context, server_name="kmip.example.com"):
                pass
