"""Connections that were refused or lost, for the audit trail: a flood of them must not become a flood of lines."""

from collections.abc import Callable, Mapping
from typing import Any, Final

_LINES: Final = 10  # a second, for each listener, reason and detail
_CLIENTS: Final = 20  # addresses that a sum names

#: Takes the name of an event, and its members.
AddEvent = Callable[[str, Mapping[str, Any]], None]


class _Sum:
    """Connections of one listener, reason and detail since the last flush."""

    def __init__(self) -> None:
        self.written = 0
        self.count = 0  # not written
        self.hosts: set[str] = set()


class RefusedConnections:
    """Writes the first ten connections of each second, for each reason, and the sum of the further ones.

    ``flush`` must be called once a second. Reasons and details are of a closed set, so that sums are few.
    """

    def __init__(self, add: AddEvent) -> None:
        self._add = add
        self._sums: dict[tuple[str, str, str], _Sum] = {}

    def __repr__(self) -> str:
        return f"<RefusedConnections, {len(self._sums)} kinds in this second>"

    def add(self, listener: str, reason: str, client: str, detail: str = "", certificate: str | None = None) -> None:
        """Take a connection; ``client`` is its address and port, ``certificate`` its fingerprint, if they are known."""
        key = (listener, reason, detail)
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = _Sum()
        if found.written < _LINES:
            found.written += 1
            known = {} if certificate is None else {"certificate": certificate}
            self._add("connection", {**_facts(key), "client": client, **known})
            return
        found.count += 1
        if len(found.hosts) < _CLIENTS:
            found.hosts.add(client.rpartition(":")[0])

    def flush(self) -> None:
        """Write the sums, and begin another second."""
        sums, self._sums = self._sums, {}
        for key, found in sums.items():
            if found.count:
                self._add("connections", {**_facts(key), "count": found.count, "clients": sorted(found.hosts)})


def _facts(key: tuple[str, str, str]) -> dict[str, Any]:
    listener, reason, detail = key
    return {"listener": listener, "reason": reason, **({"detail": detail} if detail else {})}
