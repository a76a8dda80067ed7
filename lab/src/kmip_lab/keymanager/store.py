"""The store of managed objects: SQLite, in memory or in a file.

Key managers in one process may share one Store, several processes one file; or each has a Store of its own, which logs
its changes for replication. Writes are never synced to disk: test objects are not worth the time.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from kmip_lab.keymanager.attributes import Attribute, ManagedObject
from kmip_lab.keymanager.replication_log import Change, ChangeLog

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
    """The comparison of a Criterion."""

    EQUAL = auto()
    BETWEEN = auto()
    ALL_BITS = auto()


class Criterion(NamedTuple):
    """A condition of Locate on one attribute.

    ``values`` are encoded as in Attribute: two for BETWEEN, otherwise one. ``name`` may also be Unique Identifier,
    Object Type or State.
    """

    name: str
    values: tuple[bytes, ...]
    match: Match = Match.EQUAL


class Store:
    """Managed objects, by unique identifier.

    ``path`` is a file that other processes may use too, or ``:memory:``. With ``logged_as``, a key manager's name, the
    store keeps a ``log`` of its changes for replication, and must not be shared. Methods block only for a transaction
    of a different process, up to five seconds; then they raise sqlite3.Error.
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
        """Return the number of objects, including destroyed objects."""
        count: int = self._connection.execute("SELECT count(*) FROM objects").fetchone()[0]
        return count

    def close(self) -> None:
        """Close the file; objects in memory are lost."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Execute a block as one transaction: other processes can't write meanwhile.

        An error in the block rolls it back. Blocks can't be nested.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            if self.log is not None:
                self.log.on_rollback()
            raise
        self._connection.execute("COMMIT")
        if self.log is not None:
            self.log.on_commit()

    def get(self, uid: str) -> ManagedObject | None:
        """Return the object with this unique identifier, of any owner; None if there is none."""
        row = self._connection.execute(
            "SELECT owner, object_type, state, material FROM objects WHERE uid = ?", (uid,)
        ).fetchone()
        if row is None:
            return None
        owner, object_type, state, material = row
        attributes = self._connection.execute(
            "SELECT name, position, type, value FROM attributes WHERE uid = ?", (uid,)
        ).fetchall()
        return ManagedObject(uid, owner, object_type, state, material, tuple(Attribute(*row) for row in attributes))

    def save(self, saved: ManagedObject) -> None:
        """Store an object in place of its earlier value. Call within a transaction."""
        self._write(saved)
        if self.log is not None:
            self.log.record(saved)

    def apply(self, changes: Iterable[Change]) -> None:
        """Log changes of other stores, and store each object whose change is later than the stored value.

        Raises ValueError if this store has no log.
        """
        if self.log is None:
            raise ValueError(f"{self!r} is not replicated")
        with self.transaction():
            for change in changes:
                newer = self.log.accept(change)
                if newer is not None:
                    self._write(newer)

    def _write(self, saved: ManagedObject) -> None:
        self._connection.execute(_SAVE, (saved.uid, saved.owner, saved.object_type, saved.state, saved.material))
        self._connection.execute("DELETE FROM attributes WHERE uid = ?", (saved.uid,))
        self._connection.executemany(
            "INSERT INTO attributes VALUES (?, ?, ?, ?, ?)", [(saved.uid, *attribute) for attribute in saved.attributes]
        )

    def locate(
        self, owner: str, criteria: Sequence[Criterion], *, living: bool = True, destroyed: bool = False
    ) -> list[str]:
        """Return the unique identifiers of an owner's objects that meet every criterion, the newest first.

        ``living`` includes objects that have key material, ``destroyed`` objects without.
        """
        clauses = ["owner = ?", _STORAGE[living, destroyed]]
        values: list[str | bytes | int] = [owner]
        for criterion in criteria:
            clause, parameters = _clause(criterion)
            clauses.append(clause)
            values += parameters
        query = f"SELECT uid FROM objects WHERE {' AND '.join(clauses)} ORDER BY sequence DESC"  # noqa: S608 - fixed text
        return [row[0] for row in self._connection.execute(query, values)]


#: By (living, destroyed): the condition on key material.
_STORAGE: Final = {
    (False, False): "FALSE",
    (False, True): "material IS NULL",
    (True, False): "material IS NOT NULL",
    (True, True): "TRUE",
}

#: The attributes that are columns of ``objects``.
_COLUMNS: Final = {"Unique Identifier": "uid", "Object Type": "object_type", "State": "state"}

_CLAUSES: Final = {
    Match.EQUAL: "uid IN (SELECT uid FROM attributes WHERE name = ? AND value = ?)",
    #: For dates: encoded dates since 1970 sort in the order of time.
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
    """Return whether ``value`` has every bit of ``asked``."""
    bits = int.from_bytes(asked, "big")
    return int.from_bytes(value, "big") & bits == bits
