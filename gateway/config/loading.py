"""Loading: from a file to a Config, or to a list of every mistake in the file."""

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gateway.config.crosschecks import crosschecked
from gateway.config.draft import Draft
from gateway.config.files import Loading
from gateway.config.mistakes import Mistake, line, translated
from gateway.config.model import Config
from gateway.errors import ConfigError

#: The form in which tomllib gives the place of a mistake.
_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?P<where>line \d+, column \d+|end of document)\)", re.DOTALL)


def load(path: Path) -> Config:
    """Read a configuration. Raises ConfigError with every mistake in it, in its tables and in the files they name."""
    return examine(_parse(_read(path), path), path)


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
        raise ConfigError([f"{path}: {line(mistake, document)}" for mistake in mistakes])
    return config


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; give the path of a configuration"]) from None
    except OSError as error:
        raise ConfigError(
            [f"{path}: can't be read ({error.strerror}); give a file that the gateway's user can read"]
        ) from None
    except UnicodeDecodeError as error:
        where = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {where}: is not UTF-8; save the file in UTF-8"]) from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply; write it without nesting"]) from None
    except ValueError as error:
        found = _PLACE.fullmatch(str(error))
        what, where = (found["what"], f"{found['where']}: ") if found else (str(error), "")
        raise ConfigError([f"{path}: {where}is not TOML: {what[:1].lower()}{what[1:]}; correct it"]) from None
