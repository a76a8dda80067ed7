"""The names of tags, enumerated values and bits, from names.json.

The tables are those of the OASIS specifications 1.2 (section 9.1.3) and 2.1 (section 11). A name of 2.1 replaces that
of 1.2; a number that 2.1 reserves keeps its name of 1.x.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_FILE: Final = Path(__file__).with_name("names.json")

#: Names of tags and attributes whose enumeration or mask is that of a different name.
_TABLE_OF: Final = {
    "Attribute Reference": "Tag",
    "Common Protection Storage Masks": "Protection Storage Mask",
    "Extension Type": "Item Type",
    "Mask Generator Hashing Algorithm": "Hashing Algorithm",
    "Private Protection Storage Masks": "Protection Storage Mask",
    "Protection Storage Masks": "Protection Storage Mask",
    "Public Protection Storage Masks": "Protection Storage Mask",
}
_BRACKETS: Final = str.maketrans("()", "  ")
_TWO_WORDS: Final = re.compile(r"[^A-Za-z0-9_\s]+([a-z]|[A-Z](?=[a-z]))")
_FIRST_DIGITS: Final = re.compile(r"([0-9]+)(\w+)")


class Names:
    """The tables. ``name`` of a value is the name of its tag, or of its attribute."""

    def __init__(self) -> None:
        raw = json.loads(_FILE.read_text())
        self._tags = _numbered(raw["tags"])
        self._tag_names = frozenset(self._tags.values())
        self._enumerations = {name: _numbered(table) for name, table in raw["enumerations"].items()}
        self._enumerations["Tag"] = self._tags
        self._masks = {name: _numbered(table) for name, table in raw["masks"].items()}

    def tag(self, tag: int) -> str | None:
        """Return the specification's name of a tag, or None."""
        return self._tags.get(tag)

    def has_tag(self, name: str) -> bool:
        """Return True if a tag of the specification has this name, as each of its attributes has."""
        return name in self._tag_names

    def enumerated(self, name: str, value: int) -> str | None:
        """Return the specification's name of an enumerated value, or None."""
        return self._enumerations.get(_TABLE_OF.get(name, name), {}).get(value)

    def bits(self, name: str, value: int) -> list[str] | None:
        """Return the names of the bits of a mask, lowest first; a bit without a name is a hexadecimal number.

        None if values of this name are not masks.
        """
        table = self._masks.get(_TABLE_OF.get(name, name))
        if table is None:
            return None
        value &= 0xFFFFFFFF
        return [table.get(bit, f"0x{bit:08x}") for bit in (1 << shift for shift in range(32)) if value & bit]


def tag_identifier(name: str) -> str:
    """Return a tag's name as KMIP's JSON and XML write it: ``UniqueIdentifier``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def value_identifier(name: str) -> str:
    """Return the name of an enumerated value as KMIP's JSON and XML write it: ``UsernameAndPassword``, ``SHA_256``.

    A sign before a word joins two words, so that ``Re-key`` becomes ``ReKey``; any other sign becomes an underscore;
    and the digits at the beginning go to the end, so that ``3DES`` becomes ``DES3`` (KMIP Profiles, the rules for names
    in the XML encoding).
    """
    name = _TWO_WORDS.sub(lambda match: match[1].upper(), name.translate(_BRACKETS))
    words = "".join(word[:1].upper() + word[1:] for word in name.split())
    identifier = re.sub(r"\W", "_", words)
    return _FIRST_DIGITS.sub(r"\2\1", identifier, count=1) if identifier[:1].isdigit() else identifier


def _numbered(table: Mapping[str, str]) -> dict[int, str]:
    return {int(number, 16): name for number, name in table.items()}
