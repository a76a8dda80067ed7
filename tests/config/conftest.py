"""Directories with the files that the small configuration names."""

from pathlib import Path

import pytest

from tests.kit.config_files import SECOND_IDENTITY, SMALL, put_certificates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the files that SMALL and its further tables name."""
    put_certificates(tmp_path, SMALL + SECOND_IDENTITY)
    return tmp_path


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``folder``, for examples by the hundred."""
    folder = tmp_path_factory.mktemp("kept")
    put_certificates(folder, SMALL)
    return folder
