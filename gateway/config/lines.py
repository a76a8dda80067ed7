"""Lines of settings in a file of TOML, which ``tomllib`` does not tell.

The text has been parsed, so that it is enough to look for headings and for keys at the beginning of lines. Where that
could be wrong, as in texts of several lines, there is no answer.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

_HEADING: Final = re.compile(r"\s*\[\[?\s*(?P<name>[A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"\s*(?P<name>[A-Za-z0-9_-]+)\s*[.=]")
_LONG_TEXTS: Final = ('"""', "'''")


class _Block(NamedTuple):
    """A heading, "" at the beginning of the file, and the lines of the keys below it."""

    name: str
    line: int
    keys: dict[str, int]


def line_of(at: tuple[str | int, ...], text: str, document: Mapping[str, Any]) -> int | None:
    """Return the line of a setting, or that of its table's heading if it is missing; None if neither is found.

    ``at`` is the path of the setting as in ``Mistake``; ``document`` are the tables that ``text`` holds.
    """
    if any(mark in text for mark in _LONG_TEXTS):
        return None
    blocks = list(_blocks(text))
    section, *inner = at
    tables = [block for block in blocks if block.name == section]
    if not tables:
        below = next((block.line for block in blocks if block.name.startswith(f"{section}.")), None)
        return blocks[0].keys.get(str(section), below)
    content = document.get(str(section))
    block = tables[0]
    if inner and isinstance(inner[0], int):
        if not isinstance(content, list) or len(content) != len(tables):
            return None
        block, content = tables[inner[0]], content[inner[0]]
        del inner[0]
    if not inner:
        return block.line
    key = str(inner[0])
    is_missing = isinstance(content, Mapping) and key not in content
    return block.keys.get(key) or (block.line if is_missing else None)


def _blocks(text: str) -> Iterator[_Block]:
    block = _Block("", 1, {})
    for number, line in enumerate(text.split("\n"), 1):
        if heading := _HEADING.match(line):
            yield block
            block = _Block(heading["name"], number, {})
        elif key := _KEY.match(line):
            block.keys.setdefault(key["name"], number)
    yield block
