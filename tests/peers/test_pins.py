"""Each peer has its README line, and the version that the page names is the pinned one."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.peers import cosmian, kmip_go, kmip_rust
from tests.peers.__main__ import TRIALS

PEERS: Final = Path(__file__).parent
FOLDERS: Final = sorted(path.parent for path in PEERS.glob("*/__init__.py"))
PYTHON: Final = sorted(path.parent for path in PEERS.glob("*/requirements.txt"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_peer_has_a_line_that_says_what_it_is(folder: Path) -> None:
    (line,) = (folder / "README.md").read_text().splitlines()
    assert len(line) > 60


@pytest.mark.parametrize("folder", PYTHON, ids=lambda folder: folder.name)
def test_each_python_package_is_pinned_by_hashes(folder: Path) -> None:
    lock = (folder / "requirements.lock").read_text()
    pins = re.split(r"(?m)^(?=\S)", re.sub(r"(?m)^ *#.*\n", "", lock))
    assert all("==" in pin.splitlines()[0] and "--hash=sha256:" in pin for pin in pins if pin)
    for line in (folder / "requirements.txt").read_text().split():
        assert line.lower() in lock.lower()


def test_the_go_module_is_the_one_of_its_sum() -> None:
    version = kmip_go.CLIENT.software.version
    assert f"github.com/ovh/kmip-go v{version}\n" in (PEERS / "kmip_go" / "go.mod").read_text()
    assert f"github.com/ovh/kmip-go v{version} h1:" in (PEERS / "kmip_go" / "go.sum").read_text()


@pytest.mark.parametrize(
    ("folder", "crate", "version"),
    [
        ("kmip_rust", "kmip-protocol", kmip_rust.CLIENT.software.version),
        ("cosmian", "cosmian_kms_server", cosmian.VERSION),
    ],
)
def test_a_crate_is_the_one_of_its_lock(folder: str, crate: str, version: str) -> None:
    packages = tomllib.loads((PEERS / folder / "Cargo.lock").read_text())["package"]
    (locked,) = [each for each in packages if each["name"] == crate]
    assert locked["version"] == version
    assert len(locked["checksum"]) == 64


def test_each_trial_has_its_own_name() -> None:
    names = [trial.name for trial in TRIALS]
    assert len(names) == len(set(names))
