"""What the tests of the front share: certificates, and a clock that jumps where nothing happens."""

import pytest
from trio.testing import MockClock

from tests.kit.processes import Certificates


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One set for all."""
    return Certificates(tmp_path_factory.mktemp("front"))


@pytest.fixture
def clock() -> MockClock:
    """Jumps to the next deadline once nothing has happened for a moment; bytes on the loopback take less."""
    return MockClock(autojump_threshold=0.05)
