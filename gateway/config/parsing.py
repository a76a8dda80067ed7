"""Parsing: from the file of a configuration to its tables, or to a mistake with the line.

``tomllib`` names the place of a mistake well, but speaks of the grammar of TOML; a table translates its texts.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.config.model import LISTS
from gateway.config.reading import FileError, MissingFileError, read_file
from gateway.config.values import shown
from gateway.errors import ConfigError

#: The form in which tomllib gives the place of a mistake.
_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?P<where>line (?P<line>\d+), column \d+|end of document)\)", re.DOTALL)
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_-]{1,60})\s*=")
_HEADING: Final = re.compile(r"\s*\[\[?([^\]]*)")
#: Beginnings of tomllib's texts, and what they mean for an operator.
_MEANINGS: Final = (
    ("Expected '=' after a key", 'there is no "=" after a key; write key = value'),
    (
        "Expected newline or end of document",
        "something follows a value; put a text in double quotes, and begin a comment with #",
    ),
    ("Invalid value", "this is no value; put a text in double quotes, and write true and false in small letters"),
    ("Invalid date or datetime", "this is no value; put a text in double quotes"),
    ("Unescaped '\\'", "a text has a backslash; put the text in single quotes, or write each backslash twice"),
    ("Illegal character '\\n'", "a text does not end on its line; add the quote that closes it"),
    ("Expected \"'", "a text does not end; add the quote that closes it"),
    ("Expected '\"", "a text does not end; add the quote that closes it"),
    ("Unterminated string", "a text does not end; add the quote that closes it"),
    ("Illegal character", "there is a control character; remove it"),
    ("Unclosed array", "a list does not end; add the bracket ] that closes it"),
    ("Unclosed inline table", "a table in braces does not end on its line; write it on one line, and close it with }"),
    (
        "Invalid initial character for a key part",
        "there is no key here; write key = value, and a table in braces on one line, without a comma at its end",
    ),
    ("Expected ']", "a heading does not end; write [section], or [[section]] for a table of a list"),
    ("Invalid statement", "no line begins so; write key = value, [section], or # and a comment"),
)


class Parsed(NamedTuple):
    """The text of a file, and its tables."""

    text: str
    tables: dict[str, Any]


def parse(path: Path) -> Parsed:
    """Read a file. Raises ConfigError."""
    text = _read(path)
    try:
        return Parsed(text, tomllib.loads(text))
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply; write it without nesting"]) from None
    except ValueError as error:
        found = _PLACE.fullmatch(str(error))
        if found is None:  # a number of thousands of digits
            raise ConfigError([f"{path}: is not TOML: {error}; correct it"]) from None
        lines = text.split("\n")
        line = lines[int(found["line"]) - 1] if found["line"] else lines[-1]
        raise ConfigError([f"{path}: {found['where']}: {_meaning(found['what'], line)}"]) from None


def _read(path: Path) -> str:
    try:
        return read_file(path, "a configuration file").decode("utf-8-sig")
    except MissingFileError:
        raise ConfigError([f"{path}: there is no such file; give the path of a configuration file"]) from None
    except FileError as error:
        raise ConfigError([f"{path}: {error.fault}"]) from None
    except UnicodeDecodeError as error:
        where = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {where}: is not UTF-8; save the file in UTF-8"]) from None


def _meaning(what: str, line: str) -> str:
    """Return what a mistake of tomllib means, and what to do. ``line`` is the line in which it was found."""
    if found := re.match(r"Cannot declare \((.*)\) twice", what):
        return _second_heading(".".join(re.findall(r"'([^']*)'", found[1])))
    if found := re.fullmatch(r"Duplicate inline table key '(.*)'", what):
        return f"the key {shown(found[1])} is set twice in braces; leave one of them out"
    if what.startswith("Cannot overwrite a value"):
        return _second_value(line)
    if what == "Invalid value" and line.lstrip().startswith("["):
        return "this is no value, and perhaps a list above does not end; close it with ]"
    meaning = next((meaning for beginning, meaning in _MEANINGS if what.startswith(beginning)), "")
    return meaning or f"is not TOML: {what[:1].lower()}{what[1:]}; correct it"


def _second_value(line: str) -> str:
    if heading := _HEADING.match(line):
        return _second_heading(heading[1].strip())
    key = _KEY.match(line)
    return f"{f'the key {shown(key[1])}' if key else 'a key'} is set twice in this table; leave one of them out"


def _second_heading(name: str) -> str:
    if name in LISTS:
        return f"the heading [{name}] is wrong here; write [[{name}]] above each table of the list"
    return f"the section {shown(name)} begins twice; put its settings below one heading [{name}]"
