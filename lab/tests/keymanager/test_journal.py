"""The journal: an entry for each executed operation, of any process, without key material."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kmip_lab.keymanager import Journal, Store, read_journal
from kmip_lab.keymanager.engine import Engine

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask
from gateway.kmip.spec import ObjectType, Operation, Tag
from lab.tests.kit.engine_client import EngineClient, key_block, uid_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def client(path: Path, store: Store) -> Iterator[EngineClient]:
    journal = Journal(path)
    yield EngineClient(Engine("atlanta-001", store, journal))
    journal.close()


def test_every_executed_operation_has_an_entry(client: EngineClient, path: Path) -> None:
    made = client.create()
    client.get(made)
    client.destroy(made)
    client.get(made)
    client.ask(Operation.QUERY)
    entries = read_journal(path)
    assert [(each.operation, each.uids, each.result) for each in entries] == [
        ("Create", [made.uid], "Success"),
        ("Get", [made.uid], "Success"),
        ("Destroy", [made.uid], "Success"),
        ("Get", [made.uid], "ItemNotFound"),
        ("Query", [], "Success"),
    ]
    assert {(each.server, each.owner) for each in entries} == {("atlanta-001", "alice")}
    assert [each.time for each in entries] == sorted(each.time for each in entries)


def test_items_after_a_failure_have_no_entry(client: EngineClient, path: Path) -> None:
    client.batch(Ask(Operation.GET, uid_of("none")), Ask(Operation.GET, uid_of("none either")))
    assert [each.uids for each in read_journal(path)] == [["none"]]


def test_an_undecodable_request_has_no_entry(client: EngineClient, path: Path) -> None:
    client.engine.handle(b"nonsense", "alice")
    assert read_journal(path) == []


def test_the_journal_has_no_key_material(client: EngineClient, path: Path) -> None:
    key = b"sixteen letters."
    made = client.register(ObjectType.SYMMETRIC_KEY, ttlv.structure(Tag.SYMMETRIC_KEY, key_block(key)))
    assert client.get(made).key == key
    text = path.read_bytes()
    assert key not in text
    assert key.hex().encode() not in text.lower()


def test_key_managers_share_a_journal(path: Path, store: Store) -> None:
    journals = [Journal(path) for _ in range(2)]
    for name, journal in zip(("atlanta-001", "london-001"), journals, strict=True):
        EngineClient(Engine(name, store, journal)).create()
    EngineClient(Engine("atlanta-001", store, journals[0])).create()
    assert [each.server for each in read_journal(path)] == ["atlanta-001", "london-001", "atlanta-001"]
    for journal in journals:
        journal.close()


def test_an_entry_is_one_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    journal = Journal(path)
    monkeypatch.setattr("os.write", lambda _, data: written.append(data))
    journal.write(server="s", owner="o", operation="Get", uids=["a", "b"], result="Success")
    assert len(written) == 1
    assert written[0].endswith(b"}\n")


def test_the_file_is_readable_by_its_owner_only(path: Path) -> None:
    Journal(path).close()
    assert path.stat().st_mode & 0o077 == 0
