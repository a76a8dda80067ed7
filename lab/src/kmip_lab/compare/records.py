"""Comparisons as JSON: every run of each, and what follows from them; to be read again and gathered."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import click

from kmip_lab.compare.cases import CASES
from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.load import LoadResult
from kmip_lab.compare.output import summary

_DIGITS: Final = 5  # significant ones of each number
_RESULTS: Final = {field.name for field in fields(LoadResult)}


@dataclass(frozen=True)
class Comparison:
    """The samples of one comparison, and lines about its machine and programs."""

    about: Sequence[str]
    samples: Sequence[Sample]


def as_json(comparisons: Sequence[Comparison]) -> str:
    """Return every run, in seconds and bytes, a line for each, and the ratios and limits.

    Numbers that are 0 are left out. Several comparisons are in a list "gathered".
    """
    recorded = [_record(comparison) for comparison in comparisons]
    figures = summary(Figures(*(comparison.samples for comparison in comparisons)))
    whole = {**recorded[0], **figures} if len(recorded) == 1 else {"gathered": recorded, **figures}
    return _with_lines(whole) + "\n"


def read(paths: Sequence[Path]) -> list[Comparison]:
    """Return the comparisons in files that ``as_json`` has written. Raises ClickException."""
    return [comparison for path in paths for comparison in _read(path)]


def _record(comparison: Comparison) -> dict[str, Any]:
    runs = []
    for sample in comparison.samples:
        measured = {name: value for name, value in asdict(sample.measured).items() if value}
        runs.append({"case": sample.case, "proxy": sample.proxy, "round": sample.round, **measured})
    return {"about": list(comparison.about), "runs": runs}


def _with_lines(data: Any, indent: str = "\n") -> str:
    """Return JSON with a line for each table that holds no other table, and with rounded numbers."""
    deeper = indent + " "
    if isinstance(data, dict) and any(isinstance(value, dict | list) for value in data.values()):
        parts = [f"{json.dumps(key)}: {_with_lines(value, deeper)}" for key, value in data.items()]
        return f"{{{deeper}{f',{deeper}'.join(parts)}{indent}}}"
    if isinstance(data, list) and data:
        return f"[{deeper}{f',{deeper}'.join(_with_lines(value, deeper) for value in data)}{indent}]"
    if isinstance(data, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_with_lines(value)}' for key, value in data.items())}}}"
    return json.dumps(float(f"{data:.{_DIGITS}g}") if isinstance(data, float) else data)


def _read(path: Path) -> list[Comparison]:
    try:
        data = json.loads(path.read_text())
        return [_comparison(each) for each in data.get("gathered", [data])]
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise click.ClickException(f"{path}: not the output of kmip-lab compare --json") from None


def _comparison(data: dict[str, Any]) -> Comparison:
    samples = [
        Sample(
            str(run["case"]),
            str(run["proxy"]),
            int(run["round"]),
            LoadResult(**{name: run[name] for name in _RESULTS & run.keys()}),
        )
        for run in data["runs"]
        if run["case"] in CASES
    ]
    return Comparison([str(line) for line in data["about"]], samples)
