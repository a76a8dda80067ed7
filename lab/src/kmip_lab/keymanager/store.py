"""Where managed objects are kept: SQLite, in memory or in a file.

Key managers in one process may share one Store, several processes one file; or each has a Store of its own, which logs
its changes for replication. Nothing is ever synced to disk, since what is kept here is not worth it.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from kmip_lab.keymanager.changes import Change, ChangeLog
from kmip_lab.keymanager.objects import Attribute, ManagedObject

_BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process's transaction

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS objects (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        uid TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        object_type INTEGER NOT NULL,
        state INTEGER,
        material BLOB
    );
    CREATE INDEX IF NOT EXISTS objects_by_owner ON objects (owner, sequence);
    CREATE TABLE IF NOT EXISTS attributes (
        uid TEXT NOT NULL,
        name TEXT NOT NULL,
        position INTEGER NOT NULL,
        type INTEGER NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (uid, name, position)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS attributes_by_value ON attributes (name, value, uid);
"""
_SAVE: Final = """
    INSERT INTO objects (uid, owner, object_type, state, material) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (uid) DO UPDATE SET state = excluded.state, material = excluded.material
"""


class Match(Enum):
    """How a Criterion compares."""

    EQUAL = auto()
    BETWEEN = auto()
    ALL_BITS = auto()


class Criterion(NamedTuple):
    """What an attribute must be for Locate to find its object.

    ``values`` are encoded as in Attribute, two for BETWEEN, one otherwise. ``name`` may also be Unique Identifier,
    Object Type or State.
    """

    name: str
    values: tuple[bytes, ...]
    match: Match = Match.EQUAL


class Store:
    """Managed objects, by unique identifier.

    ``path`` is a file that other processes may use too, or ``:memory:``. With ``logged_as``, a key manager's name,
    there is a ``log`` of its changes for replication, and nobody shares the store. Methods are quick and don't wait,
    except for another process's transaction, up to five seconds. They raise sqlite3.Error where that was not enough.
    """

    def __init__(self, path: str | Path = ":memory:", *, logged_as: str | None = None) -> None:
        self._path = str(path)
        self._connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None)
        self._connection.create_function("covers", 2, _covers, deterministic=True)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)
        self.log = None if logged_as is None else ChangeLog(self._connection, logged_as)

    def __repr__(self) -> str:
        return f"<Store {self._path}>"

    def count(self) -> int:
        """How many objects there are, destroyed ones included."""
        count: int = self._connection.execute("SELECT count(*) FROM objects").fetchone()[0]
        return count

    def close(self) -> None:
        """Close the file; what was in memory is gone."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep other processes from writing between what is read and what is written in the block.

        An error in the block undoes what was written. Blocks don't nest.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            if self.log is not None:
                self.log.undone()
            raise
        self._connection.execute("COMMIT")
        if self.log is not None:
            self.log.committed()

    def get(self, uid: str) -> ManagedObject | None:
        """The object with this unique identifier, whoever owns it."""
        row = self._connection.execute(
            "SELECT owner, object_type, state, material FROM objects WHERE uid = ?", (uid,)
        ).fetchone()
        if row is None:
            return None
        owner, object_type, state, material = row
        attributes = self._connection.execute(
            "SELECT name, position, type, value FROM attributes WHERE uid = ?", (uid,)
        ).fetchall()
        return ManagedObject(uid, owner, object_type, state, material, tuple(Attribute(*one) for one in attributes))

    def save(self, saved: ManagedObject) -> None:
        """Keep this value of an object in the place of any earlier one. To be called within a transaction."""
        self._write(saved)
        if self.log is not None:
            self.log.note(saved)

    def take(self, changes: Iterable[Change]) -> None:
        """Keep changes that were made in other stores, but for those of objects of which a later one is here."""
        if self.log is None:
            raise ValueError(f"{self!r} is not replicated")
        with self.transaction():
            for change in changes:
                given = self.log.take(change)
                if given is not None:
                    self._write(given)

    def _write(self, saved: ManagedObject) -> None:
        self._connection.execute(_SAVE, (saved.uid, saved.owner, saved.object_type, saved.state, saved.material))
        self._connection.execute("DELETE FROM attributes WHERE uid = ?", (saved.uid,))
        self._connection.executemany(
            "INSERT INTO attributes VALUES (?, ?, ?, ?, ?)", [(saved.uid, *one) for one in saved.attributes]
        )

    def locate(
        self, owner: str, criteria: Sequence[Criterion], *, living: bool = True, destroyed: bool = False
    ) -> list[str]:
        """Unique identifiers of an owner's objects that meet every criterion, the newest first.

        ``living`` and ``destroyed`` say whether objects with and without key material are looked at.
        """
        clauses = ["owner = ?", _STORAGE[living, destroyed]]
        values: list[str | bytes | int] = [owner]
        for criterion in criteria:
            clause, parameters = _clause(criterion)
            clauses.append(clause)
            values += parameters
        query = f"SELECT uid FROM objects WHERE {' AND '.join(clauses)} ORDER BY sequence DESC"  # noqa: S608 - fixed text
        return [row[0] for row in self._connection.execute(query, values)]


#: By (living, destroyed): the objects that are looked at.
_STORAGE: Final = {
    (False, False): "FALSE",
    (False, True): "material IS NULL",
    (True, False): "material IS NOT NULL",
    (True, True): "TRUE",
}

#: Attributes that are columns of their own, and what makes a column's value of an encoded one.
_COLUMNS: Final = {"Unique Identifier": "uid", "Object Type": "object_type", "State": "state"}

_CLAUSES: Final = {
    Match.EQUAL: "uid IN (SELECT uid FROM attributes WHERE name = ? AND value = ?)",
    #: Dates: as bytes they sort as they do in time, from 1970 on.
    Match.BETWEEN: "uid IN (SELECT uid FROM attributes WHERE name = ? AND value BETWEEN ? AND ?)",
    Match.ALL_BITS: "uid IN (SELECT uid FROM attributes WHERE name = ? AND covers(value, ?))",
}


def _clause(criterion: Criterion) -> tuple[str, list[str | bytes | int]]:
    column = _COLUMNS.get(criterion.name)
    if column is None:
        return _CLAUSES[criterion.match], [criterion.name, *criterion.values]
    value = criterion.values[0]
    return f"{column} = ?", [value.decode(errors="replace") if column == "uid" else int.from_bytes(value, "big")]


def _covers(value: bytes, asked: bytes) -> bool:
    """Whether every bit that is asked for is set."""
    bits = int.from_bytes(asked, "big")
    return int.from_bytes(value, "big") & bits == bits
