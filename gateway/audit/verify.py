"""Verify: reads the files of an audit trail, and finds the first line that is missing, moved or changed.

A plain chain shows a change unless the rest of the chain was computed anew, which anyone who can write the file can do.
A chain of HMACs shows a change by anyone who does not know the key. Lines missing at the very end look like a gateway
that still runs: the last line of a gateway that was stopped is ``stop``.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from gateway.audit.chain import BEGINNING, Sealed, field_of, hasher, parse


class Verifier:
    """Checks lines in their order. ``key`` is that of the chain, or None for a plain chain.

    ``from_middle`` accepts a first line whose predecessor is not known.
    """

    def __init__(self, key: bytes | None, *, from_middle: bool = False) -> None:
        self.notices: list[str] = []
        self._hash = hasher(key)
        self._field = field_of(key)
        self._from_middle = from_middle
        self._broken = ""
        self._events: Counter[str] = Counter()
        self._files = 0
        self._first = 0  # number of the first line
        self._sequence = 0  # of the last line; 0 before the first line
        self._last = ""  # hash of the last line
        self._time = ""
        self._event = ""
        self._incomplete: tuple[str, int] | None = None  # a line without the form of a line: its place, its bytes

    def read(self, name: str, lines: Iterable[bytes]) -> None:
        """Check the lines of a file, as far as no earlier line is broken."""
        self._files += 1
        is_first = True
        for number, line in enumerate(lines, 1):
            if self._broken:
                return
            self._check(f"{name}:{number}", line, is_first=is_first)
            is_first = False

    def _check(self, place: str, line: bytes, *, is_first: bool) -> None:
        sealed = parse(line.rstrip(b"\n"))
        facts = None if sealed is None or not line.endswith(b"\n") else _facts(line)
        if sealed is None or facts is None:
            if self._incomplete is not None:
                self._broken = f"{self._incomplete[0]}: this is no line of an audit trail"
            self._incomplete = (place, len(line.rstrip(b"\n")))
            return
        self._broken = self._fault(place, sealed, facts, is_first=is_first)
        if self._broken:
            return
        self._first = self._first or sealed.sequence
        self._sequence, self._last = sealed.sequence, sealed.digest
        self._event, self._time = str(facts.get("event")), str(facts.get("time"))
        self._events[self._event] += 1

    def _fault(self, place: str, sealed: Sealed, facts: dict[str, Any], *, is_first: bool) -> str:
        """Return the fault of a line, or an empty string."""
        if (fault := self._fault_before(facts)) or (fault := self._fault_of_kind(place, sealed)):
            return fault
        event, previous = facts.get("event"), facts.get("previous")
        begins = event in {"start", "file"} and isinstance(previous, str)
        expected = self._last
        if not self._last:
            if not begins:
                return self._fault_of_middle(place, sealed)
            expected = str(previous)
            if sealed.sequence > 1:
                self.notices.append(f"{place}: begins at line {sealed.sequence}: earlier lines are in files not given")
        elif event == "start" and previous == BEGINNING and sealed.sequence == 1 and is_first:
            self.notices.append(f"{place}: another chain begins, after line {self._sequence} of the one before")
            expected = BEGINNING
        elif sealed.sequence != self._sequence + 1:
            return f"{place}: line {sealed.sequence} follows line {self._sequence}: lines are missing or moved"
        if (begins and previous != expected) or self._hash(expected.encode() + sealed.content) != sealed.digest:
            return f"{place}: the hash of line {sealed.sequence} is wrong: this line or the line before it was changed"
        return ""

    def _fault_of_middle(self, place: str, sealed: Sealed) -> str:
        """Return the fault of a first line that is not the first of a file: its hash can't be checked."""
        if self._from_middle:
            self.notices.append(f"{place}: begins at line {sealed.sequence}, whose hash can't be checked")
            return ""
        return (
            f"{place}: line {sealed.sequence} is not the first of a file: earlier lines are missing; give the file"
            " before it, or --from-middle"
        )

    def _fault_before(self, facts: dict[str, Any]) -> str:
        """Return the fault of a line in another form before this one, unless this line says that it is incomplete."""
        if self._incomplete is None:
            return ""
        (place, size), self._incomplete = self._incomplete, None
        if facts.get("event") != "start" or facts.get("incomplete") != size:
            return f"{place}: this is no line of an audit trail"
        self.notices.append(f"{place}: the gateway was stopped when it had written {size} bytes of this line")
        return ""

    def _fault_of_kind(self, place: str, sealed: Sealed) -> str:
        if sealed.field == self._field:
            return ""
        needs = "has a keyed hash: give the key with --key-file" if sealed.field == "hmac" else "has no keyed hash"
        return f"{place}: line {sealed.sequence} {needs}"

    def finish(self, *, ended: bool = False) -> str:
        """Return the first fault of all that was read, or an empty string.

        With ``ended``, a last line that is not ``stop`` is a fault.
        """
        if self._broken:
            return self._broken
        if self._incomplete is not None:
            place, size = self._incomplete
            if size and self._sequence:
                self.notices.append(f"{place}: the last line is incomplete: the gateway is writing it, or was killed")
            else:
                return f"{place}: this is no line of an audit trail"
        if not self._sequence:
            return "there are no lines"
        if self._event != "stop":
            if ended:
                return f"the last line, {self._sequence}, is not that of a stopped gateway: lines may be missing"
            self.notices.append(
                "the last line is not that of a stopped gateway: it runs, was killed, or lines are missing"
            )
        return ""

    def summary(self) -> str:
        """Return a line about what was read, for the operator."""
        counts = ", ".join(f"{number} {event}" for event, number in sorted(self._events.items()))
        return (
            f"OK: {self._events.total()} lines in {self._files} file(s), from line {self._first} to line"
            f" {self._sequence} of {self._time} with the hash {self._last[:16]}...: {counts}"
        )


def _facts(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
