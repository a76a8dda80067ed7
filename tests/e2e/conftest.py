"""Certificates and key managers that the tests of a file share, unless the file has its own."""

from collections.abc import Iterator

import pytest

from tests.kit.processes import Certificates, running_key_managers


@pytest.fixture(scope="module")
def certificates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2]))


@pytest.fixture(scope="module")
def key_managers(certificates: Certificates) -> Iterator[list[int]]:
    """The ports of two simulated key managers."""
    with running_key_managers(certificates) as ports:
        yield ports
