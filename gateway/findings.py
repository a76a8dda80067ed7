"""Findings about a configuration, mistakes and warnings, for programs: as JSON, and as lines of the log.

A finding is made as a line for an operator, "FILE: line N: SETTING: TEXT"; any part but the text may be missing.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway import log

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
#: A setting or a table, as in ``listeners["kmip"].match.subject_cn``.
_SETTING: Final = re.compile(rf"(?:[\w-]+|{_QUOTED})(?:\[(?:{_QUOTED}|[^\]\"]*)\]|\.[\w-]+|\.{_QUOTED})*(?=: )")


_LINE: Final = re.compile(r"line (?P<line>\d+)(?:, column \d+)?: ")


class Finding(NamedTuple):
    """A mistake or a warning. ``file``, ``line`` and ``key`` are None if the finding is not about one, or not known."""

    file: str | None
    line: int | None
    key: str | None
    message: str


def parse(line: str, files: Iterable[Path]) -> Finding:
    """Return the parts of a line. ``files`` are the files with which a line may begin."""
    file = next((str(path) for path in files if line.startswith(f"{path}: ")), None)
    text = line if file is None else line.removeprefix(f"{file}: ")
    place = _LINE.match(text)
    number = int(place["line"]) if place else None
    text = text[place.end() :] if place else text
    key = _SETTING.match(text)
    return Finding(file, number, key[0], text[key.end() + 2 :]) if key else Finding(file, number, None, text)


def as_json(lines: Iterable[str], files: Sequence[Path]) -> list[dict[str, str | int | None]]:
    """Return lines as JSON holds them."""
    return [parse(line, files)._asdict() for line in lines]


def document(mistakes: Iterable[str], warnings: Iterable[str], files: Sequence[Path]) -> str:
    """Return the JSON that ``kmip-gateway check --json`` prints."""
    found = {"mistakes": as_json(mistakes, files), "warnings": as_json(warnings, files)}
    return json.dumps(found, indent=2)


def log_mistakes(lines: Iterable[str], files: Sequence[Path]) -> None:
    """Log a line for each mistake; ``log.configure`` has been called."""
    for line in lines:
        found = parse(line, files)
        log.get("gateway").error(
            "mistake in the configuration", file=found.file, line=found.line, key=found.key, detail=found.message
        )
