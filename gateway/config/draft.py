"""Draft: a configuration file in which some settings may be wrong, for the rules between settings."""

from collections.abc import Collection, Mapping
from typing import Any

from gateway.config.mistakes import At, path_of
from gateway.config.model import LISTS, SECTIONS


class Draft:
    """A file in which some settings may be wrong. Other settings are returned as they stand in the file."""

    def __init__(self, document: Mapping[str, Any], wrong: Collection[At]) -> None:
        self._document = document
        self._wrong = wrong

    def place(self, at: At) -> str:
        """Return the path of the table that a setting stands in, for a message."""
        return path_of(at[:2] if at[0] in LISTS else at[:1], self._document)

    def setting(self, section: str, key: str) -> Any:
        """Return a setting of a section that is no list, or its default; None if the setting is wrong."""
        return self._value((section,), key)

    def is_given(self, section: str, key: str) -> bool:
        """Return True if a setting of a section that is no list stands in the file."""
        table = self._document.get(section)
        return isinstance(table, dict) and key in table

    def column(self, section: str, key: str) -> list[tuple[At, Any]]:
        """Return a setting of each table in a list, with its path, unless the setting is wrong or missing."""
        tables = self._document.get(section)
        if not isinstance(tables, list):
            return []
        cells = [((section, index, key), self._value((section, index), key)) for index in range(len(tables))]
        return [(at, value) for at, value in cells if value is not None]

    def cells(self, section: str, key: str) -> list[tuple[At, Any]]:
        """Return a setting of a section, with its path: of each table of a list, or of the only table."""
        if section in LISTS:
            return self.column(section, key)
        value = self.setting(section, key)
        return [] if value in {None, ""} else [((section, key), value)]

    def length(self, section: str) -> int:
        """Return the number of tables in a list."""
        tables = self._document.get(section)
        return len(tables) if isinstance(tables, list) else 0

    def _value(self, table: At, key: str) -> Any:
        at = (*table, key)
        if any(at[:length] in self._wrong for length in range(1, len(at) + 1)):
            return None
        where: Any = self._document
        for part in table:
            where = where.get(part, {}) if isinstance(part, str) else where[part]
        field = SECTIONS[str(table[0])].model_fields[key]
        return where.get(key, None if field.is_required() else field.default)
