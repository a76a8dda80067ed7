"""Certificates of both key types, and a pair of streams after the handshake."""

from collections.abc import AsyncIterator

import pytest

from tests.kit.processes import Certificates
from tests.kit.streams import Pair, client_tls, server_tls, shaken


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ecdsa"))


@pytest.fixture(scope="package")
def rsa(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("rsa"), "rsa")


@pytest.fixture(params=["certificates", "rsa"])
def either(request: pytest.FixtureRequest) -> Certificates:
    """Certificates with ECDSA keys, then with RSA keys."""
    found: Certificates = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def pair(certificates: Certificates) -> AsyncIterator[Pair]:
    async with shaken(server_tls(certificates), client_tls(certificates)) as pair:
        yield pair
