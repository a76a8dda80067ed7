"""Fuzz every target for its share of some minutes, guided by coverage, then sessions against a running gateway.

Starts from the corpus that is kept beside this file. Inputs that reach something new go to a working directory;
``--keep`` adds the shortest of them to the corpus. Needs atheris, which the development environment does not have.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from tests.fuzz.targets import MAX_SIZE, TARGETS

CORPUS: Final = Path(__file__).parent / "corpus"
_MAX_LENGTH: Final = 4096  # bytes of an input: longer inputs take the same paths, more slowly
_KEPT: Final = 100  # inputs that a run adds to a target's corpus
_KEPT_LENGTH: Final = 1024
_SLOW: Final = 2  # s for an input, far more than a message of this length may take


def _options(name: str, seconds: int, work: Path) -> list[str]:
    return [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_LENGTH}",
        f"-timeout={_SLOW}",
        f"-artifact_prefix={work}/crash-{name}-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]


def fuzz(name: str, seconds: int, work: Path) -> int:
    """Fuzz one target in a process of its own; returns its exit status, 0 if no input made the target raise."""
    new = work / name
    new.mkdir(parents=True, exist_ok=True)
    kept = CORPUS / name
    command = [sys.executable, "-m", "tests.fuzz.one", name, *_options(name, seconds, work), str(new)]
    return subprocess.run([*command, *([str(kept)] if kept.is_dir() else [])], check=False).returncode


def keep(name: str, work: Path) -> None:
    """Add the shortest inputs that reached something new to the corpus; their names are the hashes of their bytes."""
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    found = sorted((work / name).iterdir(), key=lambda path: path.stat().st_size)
    for path in found[:_KEPT]:
        data = path.read_bytes()
        if len(data) <= _KEPT_LENGTH:
            (kept / f"{path.name[:12]}.bin").write_bytes(data)


@click.command()
@click.option("--seconds", default=600, show_default=True, help="For all targets together.")
@click.option("--only", multiple=True, type=click.Choice(list(TARGETS)), help="Targets; all of them unless given.")
@click.option("--work", default=Path("build/fuzz"), type=click.Path(path_type=Path), show_default=True)
@click.option("--keep", "keeps", is_flag=True, help="Add the shortest new inputs to the corpus.")
def main(seconds: int, only: tuple[str, ...], work: Path, *, keeps: bool) -> None:
    """Fuzz the targets; exit status 1 if one of them raised. The inputs that did are in the working directory."""
    if find_spec("atheris") is None:
        raise click.ClickException("atheris is not installed; `make fuzz` installs it (requirements-fuzz.lock)")
    names = only or tuple(TARGETS)
    work.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if fuzz(name, max(1, seconds // len(names)), work) != 0]
    if keeps:
        for name in names:
            keep(name, work)
    if failed:
        raise click.ClickException(f"raised: {', '.join(failed)}; the inputs are {work}/crash-*")


if __name__ == "__main__":
    assert MAX_SIZE > _MAX_LENGTH
    main()
