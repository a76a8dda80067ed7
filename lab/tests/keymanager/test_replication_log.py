"""The log of changes: numbers, the changes that a replica lacks, and which of two changes wins."""

import pytest
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.attributes import ManagedObject, of_number, of_text
from kmip_lab.keymanager.replication_log import Change, decode_object, encode_object

KEY = ManagedObject("1", "alice", 2, 1, b"\x00key", (of_text("Object Group", "ours"), of_number("Fresh", True)))


def store(name: str) -> Store:
    return Store(logged_as=name)


def save(target: Store, *objects: ManagedObject) -> None:
    with target.transaction():
        for each in objects:
            target.save(each)


def changes(target: Store) -> list[Change]:
    assert target.log is not None
    return target.log.after(target.log.origin, 0, 100)


def test_an_object_is_encoded_and_decoded() -> None:
    for each in (KEY, ManagedObject("2", "bob", 8, None, None, ())):
        assert decode_object(encode_object(each)) == each


def test_changes_are_counted_when_they_are_committed() -> None:
    atlanta = store("atlanta-001")
    assert atlanta.log is not None
    announced: list[int] = []
    log = atlanta.log
    log.on_change = lambda: announced.append(log.last)
    save(atlanta, KEY, KEY)
    with pytest.raises(AttributeError):
        save(atlanta, KEY, None)  # type: ignore[arg-type]
    save(atlanta, KEY)
    with atlanta.transaction():
        pass
    assert announced == [2, 3]
    assert [change.number for change in changes(atlanta)] == [1, 2, 3]
    assert "key" not in repr(changes(atlanta))


def test_the_later_change_wins_in_any_order_of_arrival() -> None:
    atlanta, london, first, second = (store(name) for name in ("a", "l", "one", "two"))
    save(atlanta, KEY)
    later = KEY.put([of_text("Object Group", "theirs")])
    save(london, later)
    first.apply([*changes(atlanta), *changes(london)])
    second.apply([*changes(london), *changes(atlanta), *changes(london)])
    assert first.get("1") == second.get("1")
    found = first.get("1")
    assert found is not None
    assert found.instances("Object Group") == later.instances("Object Group")


def test_a_new_change_is_later_than_the_change_that_it_replaces() -> None:
    ahead, behind = store("ahead"), store("behind")
    save(ahead, KEY)
    (change,) = changes(ahead)
    behind.apply([change._replace(stamp=change.stamp + 10**18)])  # of a clock that is years ahead
    save(behind, KEY.put([of_text("Object Group", "theirs")]))
    ahead.apply(changes(behind))
    assert ahead.get("1") == behind.get("1")


def test_missing_yields_other_origins_changes_in_order() -> None:
    atlanta, london = store("a"), store("l")
    save(atlanta, *[KEY] * 250)
    save(london, KEY)
    london.apply(changes(atlanta))
    assert london.log is not None
    have = london.log.last_numbers()
    london.apply(atlanta.log.after(atlanta.log.origin, 100, 150) if atlanta.log is not None else [])
    lacking = list(london.log.missing({changes(atlanta)[0].origin: 240}))
    assert [change.number for change in lacking] == list(range(241, 251))
    assert have[changes(atlanta)[0].origin] == 100


def test_a_new_store_of_the_same_name_has_a_new_origin() -> None:
    replica, before, after = store("r"), store("a"), store("a")
    save(before, KEY)
    replica.apply(changes(before))
    save(after, KEY.put([of_text("Object Group", "anew")]))
    replica.apply(changes(after))
    assert replica.get("1") == after.get("1")


def test_a_store_without_a_log_applies_no_changes() -> None:
    with pytest.raises(ValueError, match="not replicated"):
        Store().apply([])
