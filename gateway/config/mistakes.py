"""Mistakes of a file as texts for the operator: one line each, with the setting and what to do.

Pydantic's own texts are for programmers; a table translates them.
"""

import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.model import LISTS, SECTIONS, Config, DeviceConfig, MatchConfig, Table
from gateway.config.values import shown

#: Path of a setting: the section, the index of the table in a list of tables (from 0), and the key.
At = tuple[str | int, ...]


class Mistake(NamedTuple):
    """A mistake in one setting. The text says what is wrong and, after a semicolon, what to do."""

    at: At
    text: str


#: Tables within the tables of sections, by their keys.
_INNER: Final[dict[str, type[Table]]] = {"match": MatchConfig, "device": DeviceConfig}
#: Examples of the settings that have no default.
EXAMPLES: Final = {
    "name": '"a-name"',
    "bind": '"127.0.0.1:5696"',
    "address": '"kms.example.com:5696"',
    "certificate": '"certs/own.pem"',
    "private_key": '"certs/own.key"',
    "client_ca": '"certs/clients-ca.pem"',
    "match": '{ subject_cn = "app-1" }',
}

#: Texts for pydantic's types of errors. An error of any other type keeps pydantic's text.
_WORDS: Final[dict[str, Callable[[At, Any, Mapping[str, Any]], str]]] = {
    "missing": lambda at, _value, _ctx: _missing(at),
    "extra_forbidden": lambda at, value, _ctx: _unknown(at, value),
    "value_error": lambda _at, _value, ctx: str(ctx["error"]),
    "model_type": lambda at, _value, _ctx: f"must be a table; write {_heading(at)}",
    "tuple_type": lambda at, _value, _ctx: f"must be a list of tables; write {_heading(at)}",
    "bool_type": lambda _at, _value, _ctx: "must be true or false; write it without quotes",
    "int_type": lambda _at, value, _ctx: (
        f"must be a whole number; write it without quotes or a decimal point{_without_unit(value)}"
    ),
    "float_type": lambda _at, value, _ctx: f"must be a number; write it without quotes{_without_unit(value)}",
    "finite_number": lambda _at, _value, _ctx: "must be a number; write one that is not inf or nan",
    "greater_than": lambda _at, value, ctx: f"{shown(value)} is too little; give more than {ctx['gt']:g}",
    "greater_than_equal": lambda _at, value, ctx: f"{shown(value)} is too little; give at least {_plain(ctx['ge'])}",
    "less_than_equal": lambda _at, value, ctx: f"{shown(value)} is too much; give at most {_plain(ctx['le'])}",
    "literal_error": lambda _at, value, ctx: (
        f"{shown(value)} is not known; write {_spelling(value, ctx['expected'].replace(chr(39), chr(34)))}"
    ),
}


def _spelling(value: Any, expected: str) -> str:
    """Return the known value that is the given one but for capitals, or all known values."""
    found = shown(value.lower()) if isinstance(value, str) else ""
    return found if found in re.findall(r'"[^"]*"', expected) else expected


def _without_unit(value: Any) -> str:
    """Return advice for a number with a unit, such as "25s"; all times are in seconds, and all sizes in bytes."""
    has_unit = isinstance(value, str) and re.fullmatch(r"\s*[0-9.]+\s*[A-Za-z]+\s*", value)
    return ", and without a unit: times are in seconds, and sizes in bytes" if has_unit else ""


def translated(error: ValidationError) -> list[Mistake]:
    """Return the mistakes that pydantic found, in the order of the tables."""
    return [_translate(details) for details in error.errors(include_url=False)]


def _translate(details: ErrorDetails) -> Mistake:
    say = _WORDS.get(details["type"])
    at = details["loc"]
    return Mistake(at, say(at, details["input"], details.get("ctx", {})) if say else f"{details['msg']}; correct it")


def line(mistake: Mistake, document: Mapping[str, Any]) -> str:
    """Return the path and the text of a mistake, with control characters escaped for terminals and logs."""
    text = f"{path_of(mistake.at, document)}: {mistake.text}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def path_of(at: At, document: Mapping[str, Any]) -> str:
    """Return the path of a setting or a table as text. A table of a list is given by its name, if that is unique."""
    path = ""
    where: Any = document
    for part in at:
        if isinstance(part, int):
            path += f"[{_label(where, part)}]"
        else:
            path += f".{_key(part)}" if path else _key(part)
        where = _inside(where, part)
    return path


def _label(tables: list[Any], index: int) -> str:
    names = [table.get("name") if isinstance(table, dict) else None for table in tables]
    name = names[index]
    return shown(name) if isinstance(name, str) and name and names.count(name) == 1 else str(index)


def _inside(where: Any, part: str | int) -> Any:
    try:
        return where[part]
    except (LookupError, TypeError):
        return None


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _heading(at: At) -> str:
    section = str(at[0])
    if at[-1] == "device":
        return 'device = { serial_number = "A-17" }'
    if at[-1] == "match":
        return f"match = {EXAMPLES['match']}"
    return f"[[{section}]]" if section in LISTS else f"[{section}]"


def _missing(at: At) -> str:
    key = str(at[-1])
    return f"missing; add a line such as {key} = {EXAMPLES[key]}" if len(at) > 1 else f"missing; add {_heading(at)}"


def _unknown(at: At, value: Any) -> str:
    key = str(at[-1])
    if len(at) == 1:
        return _unknown_section(key) if isinstance(value, dict | list) else _outside(key)
    known = _known_keys(at)
    if near := get_close_matches(key, known, 1):
        return f'unknown key {shown(key)}; did you mean "{near[0]}"?'
    if ends := [each for each in known if each.endswith(f"_{key}")]:
        return f'unknown key {shown(key)}; did you mean "{ends[0]}"?'
    elsewhere = _sections_with(key)
    belongs = f"it belongs in {elsewhere}, and " if elsewhere and len(at) <= 3 else ""
    return f"unknown key {shown(key)}; {belongs}known here are {', '.join(known)}"


def _unknown_section(name: str) -> str:
    if near := get_close_matches(name, SECTIONS, 1):
        return f"unknown section; did you mean {_heading((near[0],))}?"
    return f"unknown section; known are {', '.join(_heading((section,)) for section in SECTIONS)}"


def _outside(key: str) -> str:
    """Return the text about a key above the first heading of a file."""
    where = _sections_with(key) or "the heading of its section"
    return f"stands above the first section, where no key has an effect; put it below {where}"


def _sections_with(key: str) -> str:
    return " or ".join(_heading((section,)) for section, table in SECTIONS.items() if key in table.model_fields)


def _known_keys(at: At) -> list[str]:
    """Return the keys of the table that the last part of ``at`` stands in."""
    parents = [part for part in at[:-1] if isinstance(part, str)]
    table = Config if not parents else _INNER.get(parents[-1]) or SECTIONS[parents[-1]]
    return list(table.model_fields)


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
