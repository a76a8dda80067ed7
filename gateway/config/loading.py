"""Loading: from a file to a Config, or to a list of every mistake in the file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config.crosschecks import crosschecked
from gateway.config.draft import Draft
from gateway.config.files import Loading
from gateway.config.mistakes import Mistake, line, translated
from gateway.config.model import Config
from gateway.config.parsing import parse
from gateway.errors import ConfigError


def load(path: Path) -> Config:
    """Read a configuration. Raises ConfigError with every mistake in it, in its tables and in the files they name."""
    return examine(parse(path), path)


def examine(document: dict[str, Any], path: Path) -> Config:
    """Return the Config of a parsed document, as ``load`` does. Relative paths begin in the directory of ``path``."""
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
        lines = [f"{path}: {line(mistake, document)}" for mistake in mistakes]
        raise ConfigError(lines, _log_format(document))
    return config


def _log_format(document: dict[str, Any]) -> str:
    """Return the format of the log that a document with mistakes asks for."""
    section = document.get("log")
    return "json" if isinstance(section, dict) and section.get("format") == "json" else "text"
