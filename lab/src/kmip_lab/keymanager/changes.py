"""The log of changes that a replicated store keeps: which key manager wrote what, in which order.

A change is a whole object. Where two key managers have written the same one, the later change stands everywhere: the
stamp is the time of writing, moved on where needed so that no object's stamps ever go back. Nothing is thrown away,
so that a replica that was gone for long still finds all that it lacks; a laboratory's stores don't get that old.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kmip_lab.keymanager.objects import Attribute, ManagedObject

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
    """One change.

    ``origin`` is the store in which it was made, ``number`` counts that store's changes from 1, ``stamp`` is in Unix
    nanoseconds, ``text`` is the whole object, as JSON.
    """

    origin: str
    number: int
    stamp: int
    text: str

    def __repr__(self) -> str:
        # Without the object: what is logged by mistake must not be a key.
        return f"<Change {self.number} of {self.origin}>"


class ChangeLog:
    """The changes of one store, its own and those that it has been given. Lives in the store's transactions.

    An origin is a key manager's name and a random part: a store that begins anew is another origin, and its numbers
    are not taken for those of the one that is lost.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        connection.executescript(_SCHEMA)
        connection.execute("INSERT OR IGNORE INTO origins VALUES (?, ?)", (name, f"{name}/{uuid.uuid4().hex}"))
        #: This store's own origin.
        self.origin: str = connection.execute("SELECT origin FROM origins WHERE name = ?", (name,)).fetchone()[0]
        #: The number of the last change that was made here and committed; 0 for none.
        self.last = self.have().get(self.origin, 0)
        #: Called after a transaction in which changes were made here.
        self.announce: Callable[[], None] = lambda: None
        self._made = 0  # in the transaction under way

    def __repr__(self) -> str:
        return f"<ChangeLog of {self.origin}: {self.last}>"

    def note(self, saved: ManagedObject) -> None:
        """Note that an object was saved here."""
        stamp = max(time.time_ns(), self._version(saved.uid)[0] + 1)
        self._made += 1
        self._keep(Change(self.origin, self.last + self._made, stamp, write_object(saved)), saved.uid)

    def committed(self) -> None:
        """The transaction was committed."""
        if self._made:
            self.last += self._made
            self._made = 0
            self.announce()

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._made = 0

    def take(self, change: Change) -> ManagedObject | None:
        """Keep a change that was made elsewhere; the object to save, or None where that is known or older."""
        known = self._connection.execute(
            "SELECT 1 FROM changes WHERE origin = ? AND number = ?", (change.origin, change.number)
        )
        if known.fetchone() is not None:
            return None
        given = read_object(change.text)
        is_newer = (change.stamp, change.origin) > self._version(given.uid)
        self._keep(change, given.uid if is_newer else None)
        return given if is_newer else None

    def have(self) -> dict[str, int]:
        """By origin, the number of the last change that is here: those before it are here, too."""
        return dict(self._connection.execute("SELECT origin, max(number) FROM changes GROUP BY origin"))

    def after(self, origin: str, number: int, most: int) -> list[Change]:
        """The changes of an origin that come after this one, in order, and at most so many."""
        query = "SELECT * FROM changes WHERE origin = ? AND number > ? ORDER BY number LIMIT ?"
        return [Change(*row) for row in self._connection.execute(query, (origin, number, most))]

    def lacking(self, have: dict[str, int], most: int = 100) -> Iterator[Change]:
        """What one who has these numbers lacks of other origins' changes, of each in order, up to what is here now."""
        for origin, last in self.have().items():
            number = last if origin == self.origin else have.get(origin, 0)
            while number < last:
                for change in self.after(origin, number, most):
                    number = change.number
                    yield change

    def _version(self, uid: str) -> tuple[int, str]:
        row = self._connection.execute("SELECT stamp, origin FROM versions WHERE uid = ?", (uid,)).fetchone()
        return (0, "") if row is None else (row[0], row[1])

    def _keep(self, change: Change, uid: str | None) -> None:
        self._connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", change)
        if uid is not None:
            row = (uid, change.stamp, change.origin)
            self._connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", row)


def write_object(saved: ManagedObject) -> str:
    """An object as JSON, bytes as hexadecimal digits."""
    attributes = [(one.name, one.position, int(one.type), one.value.hex()) for one in saved.attributes]
    material = None if saved.material is None else saved.material.hex()
    return json.dumps([saved.uid, saved.owner, saved.object_type, saved.state, material, attributes])


def read_object(text: str) -> ManagedObject:
    """An object from its JSON. Raises ValueError."""
    uid, owner, object_type, state, material, attributes = json.loads(text)
    return ManagedObject(
        uid,
        owner,
        object_type,
        state,
        None if material is None else bytes.fromhex(material),
        tuple(Attribute(name, position, kind, bytes.fromhex(value)) for name, position, kind, value in attributes),
    )
