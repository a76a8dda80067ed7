"""The journal of executed operations: a file of JSON lines that tests count. It never has key material."""

import json
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

SUCCESS: Final = "Success"


class Entry(NamedTuple):
    """An executed operation.

    ``time`` is in Unix seconds; ``server`` is the key manager's name, ``owner`` the common name of the client's
    certificate; ``operation`` is written as in ``CreateKeyPair``; ``uids`` are the unique identifiers of its objects;
    ``result`` is ``Success`` or the Result Reason, as in ``ItemNotFound``.
    """

    time: float
    server: str
    owner: str
    operation: str
    uids: list[str]
    result: str


class Journal:
    """An append-only file that several key managers, also of several processes, may share.

    Each entry is one write to a descriptor opened for appending: entries don't mix, and a killed process loses none.
    Raises OSError if the file can't be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __repr__(self) -> str:
        return f"<Journal {self._path}>"

    def write(self, *, server: str, owner: str, operation: str, uids: list[str], result: str) -> None:
        """Append an entry with the current time. Raises OSError."""
        entry = Entry(round(time.time(), 6), server, owner, operation, uids, result)
        os.write(self._descriptor, json.dumps(entry._asdict()).encode() + b"\n")

    def close(self) -> None:
        """Close the file; no entry can be written any more."""
        os.close(self._descriptor)


def read_journal(path: str | Path) -> list[Entry]:
    """Return all entries, in the order in which they were written. Raises OSError."""
    with Path(path).open(encoding="utf-8") as lines:
        return [Entry(**json.loads(line)) for line in lines]
