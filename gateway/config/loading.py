"""Loading: from a file to a Config, or to a list of every mistake in the file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config.crosschecks import crosschecked
from gateway.config.draft import Draft
from gateway.config.files import Loading
from gateway.config.lines import line_of
from gateway.config.mistakes import Mistake, line, translated
from gateway.config.model import Config
from gateway.config.parsing import parse
from gateway.errors import ConfigError


def load(path: Path) -> Config:
    """Read a configuration. Raises ConfigError with every mistake in it, in its tables and in the files they name."""
    parsed = parse(path)
    return examine(parsed.tables, path, parsed.text)


def examine(document: dict[str, Any], path: Path, text: str = "") -> Config:
    """Return the Config of a document, as ``load`` does. Relative paths begin in the directory of ``path``.

    ``text`` is what the document was parsed from, for the lines of mistakes.
    """
    loading = Loading(path.absolute().parent, datetime.now(UTC))
    config: Config | None = None
    mistakes: list[Mistake] = []
    try:
        # without this table, the default of mark_key_file would not be made relative to the directory of the file
        config = Config.model_validate({"replication": {}} | document, context=loading)
    except ValidationError as error:
        mistakes = translated(error)
    mistakes += crosschecked(Draft(document, {mistake.at for mistake in mistakes}), loading.folder, loading.now)
    if config is None or mistakes:
        lines = [f"{path}: {_place(mistake, text, document)}{line(mistake, document)}" for mistake in mistakes]
        raise ConfigError(lines, _log_format(document))
    return config


def _place(mistake: Mistake, text: str, document: dict[str, Any]) -> str:
    number = line_of(mistake.at, text, document)
    return f"line {number}: " if number else ""


def _log_format(document: dict[str, Any]) -> str:
    """Return the format of the log that a document with mistakes asks for."""
    section = document.get("log")
    return "json" if isinstance(section, dict) and section.get("format") == "json" else "text"
