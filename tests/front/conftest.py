"""Fixtures for tests of the front: certificates, and a clock that jumps to the next deadline."""

from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from tests.kit.front import ENDS_TLS_IN_WORKER
from tests.kit.processes import Certificates


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue the certificates once for all tests of the package."""
    return Certificates(tmp_path_factory.mktemp("front"))


@pytest.fixture(params=["core", "worker"])
def tls_ends_in(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests of a module twice: clients' TLS ends in the process of the core, and in a TLS worker."""
    token = ENDS_TLS_IN_WORKER.set(request.param == "worker")
    yield request.param
    ENDS_TLS_IN_WORKER.reset(token)


@pytest.fixture
def clock() -> MockClock:
    """Jump to the next deadline after 50 ms without activity; bytes on the loopback interface take less."""
    return MockClock(autojump_threshold=0.05)
