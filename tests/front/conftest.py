"""Fixtures for tests of the front: certificates, and a clock that jumps to the next deadline."""

import pytest
from trio.testing import MockClock

from tests.kit.processes import Certificates


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue the certificates once for all tests of the package."""
    return Certificates(tmp_path_factory.mktemp("front"))


@pytest.fixture
def clock() -> MockClock:
    """Jump to the next deadline after 50 ms without activity; bytes on the loopback interface take less."""
    return MockClock(autojump_threshold=0.05)
