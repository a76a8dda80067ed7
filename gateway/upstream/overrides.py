"""Overrides: an operator's changes of backends at run time, by name.

A name is that of a backend, or of a ``[[backends]]`` table, which stands for all backends of its addresses, also those
that a later lookup of the name finds. A weight of one backend counts before the weight of its table.
"""

from collections.abc import Iterable

from gateway.upstream.backend import Backend


def table_of(backend: str) -> str:
    """Return the name of a backend's table: ``atlanta`` for ``atlanta/2``."""
    return backend.partition("/")[0]


class Overrides:
    """The names of drained backends, and the weights of others."""

    def __init__(self) -> None:
        self._drained: set[str] = set()
        self._weights: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Overrides: {len(self._drained)} drained, {len(self._weights)} weights>"

    def drain(self, name: str) -> None:
        """Note that a backend is to be drained."""
        self._drained.add(name)

    def enable(self, name: str, backends: Iterable[str]) -> None:
        """Note that a backend is to take requests again. ``backends`` are the names of all backends."""
        table = table_of(name)
        if name == table:
            self._drained = {each for each in self._drained if table_of(each) != table}
        elif table in self._drained:
            self._drained |= {each for each in backends if table_of(each) == table}
            self._drained -= {table, name}
        else:
            self._drained.discard(name)

    def set_weight(self, name: str, weight: int) -> None:
        """Note a weight; one of a table replaces those of its backends."""
        if name == table_of(name):
            self._weights = {each: kept for each, kept in self._weights.items() if table_of(each) != name}
        self._weights[name] = weight

    def forget_weight(self, table: str) -> None:
        """Forget the weights of a table and of its backends: the configuration has a new one."""
        self._weights = {each: weight for each, weight in self._weights.items() if table_of(each) != table}

    def apply(self, backend: Backend) -> None:
        """Drain or enable a backend, and set its weight, as noted."""
        names = (backend.name, table_of(backend.name))
        is_drained = not self._drained.isdisjoint(names)
        if is_drained and not backend.is_drained:
            backend.drain()
        elif backend.is_drained and not is_drained:
            backend.enable()
        weight = next((self._weights[name] for name in names if name in self._weights), backend.options.weight)
        if weight != backend.options.weight:
            backend.set_weight(weight)
