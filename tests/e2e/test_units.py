"""The units in config/systemd, as systemd itself reads them. Nothing is installed or started."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

UNITS: Final = Path(__file__).parents[2] / "config" / "systemd"
SINGLE, TEMPLATE, SOCKET = "kmip-gateway.service", "kmip-gateway@.service", "kmip-gateway.socket"
MOST_EXPOSURE: Final = 20  # tenths; systemd 252 rates 1.4, later versions look at more

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return a directory with the units, whose program is one that exists: systemd checks that it can be executed."""
    program = shutil.which("true") or "/bin/true"
    for unit in UNITS.iterdir():
        text = unit.read_text()
        (tmp_path / unit.name).write_text(text.replace("/opt/kmip-gateway/bin/kmip-gateway", program))
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60, env={"LC_ALL": "C"}
    )


@needs_systemd
@pytest.mark.parametrize("unit", [SINGLE, TEMPLATE, SOCKET, "kmip-gateway@1.service"])
def test_systemd_finds_no_mistake_in_a_unit(units: Path, unit: str) -> None:
    done = analyze("verify", str(units / unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_finds_a_mistake(units: Path) -> None:
    path = units / SINGLE
    path.write_text(path.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in analyze("verify", str(path)).stderr


@needs_systemd
@pytest.mark.parametrize("unit", [SINGLE, TEMPLATE])
def test_the_exposure_of_a_unit_stays_low(units: Path, unit: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(units / unit))
    assert done.returncode == 0, done.stdout


def settings(unit: str) -> list[str]:
    """Return the lines of a unit without comments."""
    lines = (UNITS / unit).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_template_is_the_single_unit_with_files_of_its_own() -> None:
    single, template = settings(SINGLE), settings(TEMPLATE)
    changed = dict(zip(single, template, strict=True))
    assert {old: new for old, new in changed.items() if old != new} == {
        line: line.replace("KMIP gateway:", "KMIP gateway %i:")
        .replace("gateway.toml", "%i.toml")
        .replace("RuntimeDirectory=kmip-gateway", "RuntimeDirectory=kmip-gateway-%i")
        for line in single
        if line.startswith(("Description=", "ExecStart", "RuntimeDirectory="))
    }
