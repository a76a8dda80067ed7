"""A server for the tests of ``speed``."""

from functools import partial
from pathlib import Path

import pytest

from lab.tests.kit.speed_server import Serve, served


@pytest.fixture
def serve(certificates: Path, tmp_path: Path) -> Serve:
    """Return a function that runs a key manager for the length of a block, with the faults that it is given."""
    return partial(served, certificates, tmp_path)
