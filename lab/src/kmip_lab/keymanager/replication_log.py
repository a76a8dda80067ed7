"""The log of changes of a replicated store: which key manager changed which object, in which order.

A change is a whole object. If two key managers change the same object, the later change wins everywhere. Its stamp is
the time of the change, or more if the object's last stamp is not earlier: an object's stamps never go back. Changes are
never deleted, so that a replica that was down for long still gets all of them; stores of the laboratory stay small.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kmip_lab.keymanager.attributes import Attribute, ManagedObject

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS origins (name TEXT PRIMARY KEY, origin TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS changes (
        origin TEXT NOT NULL,
        number INTEGER NOT NULL,
        stamp INTEGER NOT NULL,
        object TEXT NOT NULL,
        PRIMARY KEY (origin, number)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS versions (
        uid TEXT PRIMARY KEY,
        stamp INTEGER NOT NULL,
        origin TEXT NOT NULL
    ) WITHOUT ROWID;
"""


class Change(NamedTuple):
    """A change of one object.

    ``origin`` is the store in which it was made, ``number`` counts the changes of this store from 1, ``stamp`` is in
    Unix nanoseconds, ``text`` is the whole object as JSON.
    """

    origin: str
    number: int
    stamp: int
    text: str

    def __repr__(self) -> str:
        # Without the object: a log line must not show a key, not even by mistake.
        return f"<Change {self.number} of {self.origin}>"


class ChangeLog:
    """The changes of one store: its own, and those received from other stores. Written in the store's transactions.

    An origin is a key manager's name and a random part: a store whose file was lost gets a new origin, so that its
    numbers are not confused with those of the lost store.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        connection.executescript(_SCHEMA)
        connection.execute("INSERT OR IGNORE INTO origins VALUES (?, ?)", (name, f"{name}/{uuid.uuid4().hex}"))
        #: This store's own origin.
        self.origin: str = connection.execute("SELECT origin FROM origins WHERE name = ?", (name,)).fetchone()[0]
        #: The number of this store's last committed change; 0 if there is none.
        self.last = self.last_numbers().get(self.origin, 0)
        #: Called after each transaction in which this store was changed.
        self.on_change: Callable[[], None] = lambda: None
        self._uncommitted = 0  # changes in the current transaction

    def __repr__(self) -> str:
        return f"<ChangeLog of {self.origin}: {self.last}>"

    def record(self, saved: ManagedObject) -> None:
        """Log that this store has saved an object. Call within the transaction."""
        stamp = max(time.time_ns(), self._version(saved.uid)[0] + 1)
        self._uncommitted += 1
        self._insert(Change(self.origin, self.last + self._uncommitted, stamp, encode_object(saved)), saved.uid)

    def on_commit(self) -> None:
        """Count the transaction's changes, and call ``on_change`` if there are any. The store calls it after COMMIT."""
        if self._uncommitted:
            self.last += self._uncommitted
            self._uncommitted = 0
            self.on_change()

    def on_rollback(self) -> None:
        """Discard the transaction's changes. The store calls it after ROLLBACK."""
        self._uncommitted = 0

    def accept(self, change: Change) -> ManagedObject | None:
        """Log a change of a different store; return the object to save, or None if the change is known or older."""
        known = self._connection.execute(
            "SELECT 1 FROM changes WHERE origin = ? AND number = ?", (change.origin, change.number)
        )
        if known.fetchone() is not None:
            return None
        received = decode_object(change.text)
        is_newer = (change.stamp, change.origin) > self._version(received.uid)
        self._insert(change, received.uid if is_newer else None)
        return received if is_newer else None

    def last_numbers(self) -> dict[str, int]:
        """Return, by origin, the number of the last change in this log: all earlier changes are in it, too."""
        return dict(self._connection.execute("SELECT origin, max(number) FROM changes GROUP BY origin"))

    def after(self, origin: str, number: int, limit: int) -> list[Change]:
        """Return at most ``limit`` changes of an origin after the change with this number, in order."""
        query = "SELECT * FROM changes WHERE origin = ? AND number > ? ORDER BY number LIMIT ?"
        return [Change(*row) for row in self._connection.execute(query, (origin, number, limit))]

    def missing(self, last_numbers: dict[str, int], limit: int = 100) -> Iterator[Change]:
        """Yield the changes of other origins that a replica with these ``last_numbers`` lacks, each origin's in order.

        Changes that are logged after the call are not included. ``limit`` changes are read at a time.
        """
        for origin, last in self.last_numbers().items():
            number = last if origin == self.origin else last_numbers.get(origin, 0)
            while number < last:
                for change in self.after(origin, number, limit):
                    number = change.number
                    yield change

    def _version(self, uid: str) -> tuple[int, str]:
        row = self._connection.execute("SELECT stamp, origin FROM versions WHERE uid = ?", (uid,)).fetchone()
        return (0, "") if row is None else (row[0], row[1])

    def _insert(self, change: Change, uid: str | None) -> None:
        self._connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", change)
        if uid is not None:
            row = (uid, change.stamp, change.origin)
            self._connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", row)


def encode_object(saved: ManagedObject) -> str:
    """Return an object as JSON, bytes as hexadecimal digits."""
    attributes = [(each.name, each.position, int(each.type), each.value.hex()) for each in saved.attributes]
    material = None if saved.material is None else saved.material.hex()
    return json.dumps([saved.uid, saved.owner, saved.object_type, saved.state, material, attributes])


def decode_object(text: str) -> ManagedObject:
    """Return the object of ``encode_object``. Raises ValueError for malformed JSON."""
    uid, owner, object_type, state, material, attributes = json.loads(text)
    return ManagedObject(
        uid,
        owner,
        object_type,
        state,
        None if material is None else bytes.fromhex(material),
        tuple(
            Attribute(name, position, item_type, bytes.fromhex(value))
            for name, position, item_type, value in attributes
        ),
    )
