"""The store: saved objects are returned, located by their attributes, and shared by the processes of a file."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from kmip_lab.keymanager import attributes
from kmip_lab.keymanager.attributes import Attribute, ManagedObject
from kmip_lab.keymanager.store import Criterion, Match, Store


def an_object(uid: str = "one", owner: str = "alice", *facts: Attribute) -> ManagedObject:
    return ManagedObject(uid, owner, 2, 1, b"material", facts)


def number(name: str, value: int) -> Attribute:
    return attributes.of_number(name, value)


def test_get_returns_the_saved_object(store: Store) -> None:
    saved = an_object("one", "alice", number("Cryptographic Length", 256), Attribute("x-own", 3, 7, b"red"))
    store.save(saved)
    assert store.get("one") == saved
    assert store.get("another") is None


def test_save_replaces_the_earlier_value(store: Store) -> None:
    first = an_object("one", "alice", attributes.of_text("Object Group", "a"), number("Cryptographic Length", 128))
    store.save(first)
    store.save(an_object("two"))
    later = replace(first.drop(first.instances("Object Group")), state=2, material=None)
    store.save(later)
    assert store.get("one") == later
    assert store.count() == 2
    assert store.locate("alice", [], destroyed=True) == ["two", "one"]  # the order is that of the first save


def test_a_failed_transaction_is_rolled_back(store: Store) -> None:
    def fail() -> None:
        with store.transaction():
            store.save(an_object())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.count() == 0
    with store.transaction():
        store.save(an_object())
    assert store.count() == 1


def test_locate_finds_an_owners_objects_newest_first(store: Store) -> None:
    for uid, owner in (("one", "alice"), ("two", "bob"), ("three", "alice")):
        store.save(an_object(uid, owner))
    assert store.locate("alice", []) == ["three", "one"]
    assert store.locate("carol", []) == []


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        ([Criterion("Object Group", (b"red",))], ["both", "red"]),
        ([Criterion("Object Group", (b"red",)), Criterion("Object Group", (b"blue",))], ["both"]),
        ([Criterion("Object Group", (b"re",))], []),
        ([Criterion("Cryptographic Usage Mask", (b"\0\0\0\x04",), Match.ALL_BITS)], ["both", "red"]),
        ([Criterion("Cryptographic Usage Mask", (b"\0\0\0\x0c",), Match.ALL_BITS)], ["red"]),
        ([Criterion("Initial Date", (bytes(7) + b"\x05", bytes(7) + b"\x0f"), Match.BETWEEN)], ["both"]),
        ([Criterion("Initial Date", (bytes(7) + b"\x14",))], ["red"]),
        ([Criterion("Unique Identifier", (b"red",))], ["red"]),
        ([Criterion("Object Type", (b"\0\0\0\x03",))], []),
        ([Criterion("State", (b"\0\0\0\x01",)), Criterion("Object Type", (b"\0\0\0\x02",))], ["both", "red"]),
    ],
)
def test_locate_meets_every_criterion(store: Store, criteria: list[Criterion], found: list[str]) -> None:
    red = attributes.of_text("Object Group", "red")
    blue = attributes.of_text("Object Group", "blue")._replace(position=1)
    mask, date = "Cryptographic Usage Mask", "Initial Date"
    store.save(an_object("red", "alice", red, number(mask, 0x0C), number(date, 20)))
    store.save(an_object("both", "alice", red, blue, number(mask, 0x14), number(date, 10)))
    assert store.locate("alice", criteria) == found


def test_locate_finds_destroyed_objects_if_asked(store: Store) -> None:
    store.save(an_object("living"))
    store.save(replace(an_object("destroyed"), material=None))
    assert store.locate("alice", []) == ["living"]
    assert store.locate("alice", [], living=False, destroyed=True) == ["destroyed"]
    assert store.locate("alice", [], destroyed=True) == ["destroyed", "living"]
    assert store.locate("alice", [], living=False) == []


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    here, there = Store(path), Store(path)
    here.save(an_object())
    assert there.get("one") == an_object()
    with there.transaction():
        there.save(replace(an_object(), state=2))
    assert here.get("one") == replace(an_object(), state=2)
    here.close()
    there.close()


def test_two_processes_can_not_write_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmip_lab.keymanager.store._BUSY_TIMEOUT", 0.01)
    here, there = Store(tmp_path / "store.db"), Store(tmp_path / "store.db")
    with here.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"), there.transaction():
        pass
    with there.transaction():
        there.save(an_object())
    here.close()
    there.close()


def test_a_file_is_there_after_the_store_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.save(an_object())
    store.close()
    again = Store(tmp_path / "store.db")
    assert again.get("one") == an_object()
    again.close()


def test_repr_shows_no_key_material() -> None:
    assert "material" not in repr(an_object())
