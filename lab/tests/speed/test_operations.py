"""The table of operations that can be measured."""

import pytest
from kmip_lab.speed.operations import OPERATIONS, Keys

from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Version
from gateway.kmip.spec import Operation

REQUESTED = {
    "get": Operation.GET,
    "wrap": Operation.GET,
    "create": Operation.CREATE,
    "create-rsa": Operation.CREATE_KEY_PAIR,
    "create-ecc": Operation.CREATE_KEY_PAIR,
    "server": Operation.QUERY,
    "versions": Operation.DISCOVER_VERSIONS,
}


@pytest.mark.parametrize("version", [(1, 0), (1, 4), (2, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_sends_its_request(name: str, version: Version) -> None:
    request = decode_request(OPERATIONS[name].request(version, Keys("key", "wrapping key")))
    assert [item.operation for item in request.items] == [REQUESTED[name]]
    assert request.version == ((1, 1) if (name, version) == ("versions", (1, 0)) else version)
