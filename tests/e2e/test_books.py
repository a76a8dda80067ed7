"""The books themselves: they balance where all is well, and each mistake is found."""

from collections.abc import Callable

import pytest
from kmip_lab.keymanager.journal import SUCCESS, Entry

from tests.kit.ledger import Asked, Books, Condition, Disturbance, Kind, Outcome, Standby, Stored, Turn


def created(uid: str, owner: str = "red") -> Entry:
    return Entry(0.0, "kms-1", owner, "Create", [uid], SUCCESS)


def asked(kind: Kind, outcome: Outcome, uid: str = "", request: str = "", began: float = 0.0) -> Asked:
    return Asked(began, 0.1, "red", kind, outcome, uid, request)


def good() -> Books:
    """One Create that was reported, two that are called unknown, one of them executed, and one that failed."""
    books = Books(kills=1, standbys=[Standby("kms-1", 10.0, 15.0)], notice=2.0)
    books.asked = [
        asked(Kind.CREATE, Outcome.SUCCESS, "a", "first"),
        asked(Kind.CREATE, Outcome.UNKNOWN, request="second"),
        asked(Kind.CREATE, Outcome.UNKNOWN, request="third"),
        asked(Kind.CREATE, Outcome.ERROR, request="fourth"),
        asked(Kind.GET, Outcome.SUCCESS, "a"),
        asked(Kind.GET, Outcome.NOT_MASTER, "a", began=11.0),
        asked(Kind.FOREIGN_GET, Outcome.NOT_FOUND, "a"),
        asked(Kind.POISON, Outcome.ERROR, "poison"),
    ]
    books.disturbances = [
        Disturbance("kms-1", "frozen", 20.0, 25.0, grace=2.0),
        Disturbance("kms-1", "slow", 40.0, 45.0, is_slow=True),
        Disturbance("kms-2", "refused", 60.0, 65.0, grace=2.0, credential="red"),
    ]
    books.turns = [
        Turn("kms-1", 19.8, 20.1, "ejected", "red"),
        Turn("kms-1", 26.9, 27.1, "down"),
        Turn("kms-2", 64.0, 64.2, "ejected", "red"),
    ]
    books.entries = [created("a"), created("b"), Entry(0.0, "kms-1", "red", "Create", [], "GeneralFailure")]
    books.stored = {"a": Stored("red", "first"), "b": Stored("red", "second")}
    return books


def test_good_books_balance() -> None:
    assert good().mistakes() == []


def test_a_kill_may_cost_a_line() -> None:
    books = good()
    books.entries.remove(created("b"))
    assert books.mistakes() == []
    rows = dict(line.rsplit(maxsplit=1) for line in books.sheet().splitlines())
    assert rows["Create: executed, by the journals"] == "1"
    assert rows["Create: executed and reported to nobody"] == "1"


def make(books: Books, uid: str, owner: str = "red", request: str = "first") -> None:
    books.entries.append(created(uid, owner))
    books.stored[uid] = Stored(owner, request)


def make_all(books: Books, *uids: str) -> None:
    for uid in uids:
        make(books, uid)


def ask(books: Books, kind: Kind, outcome: Outcome, uid: str = "", began: float = 0.0) -> None:
    books.asked.append(asked(kind, outcome, uid, "another", began))


def turn(books: Books, name: str, after: float, state: str = "ejected", credential: str = "") -> None:
    books.turns.append(Turn(name, after, after + 0.2, state, credential))


MISTAKES: dict[str, Callable[[Books], object]] = {
    # Executed twice, by all witnesses or by one.
    "first reported a, and made ['a', 'c']": lambda books: make(books, "c"),
    "second is unknown, and made ['b', 'c']": lambda books: make(books, "c", request="second"),
    "a was executed 2 times by the journals, 1 by the store": lambda books: books.entries.append(created("a")),
    # Reported, and not executed, or not so.
    "first reported a, and made []": lambda books: books.stored.pop("a"),
    "a was executed 1 times by the journals, 0 by the store": lambda books: books.stored.pop("a"),
    "1 keys were reported and are in no journal": lambda books: books.entries.remove(created("a")),
    "another reported a, and made []": lambda books: ask(books, Kind.CREATE, Outcome.SUCCESS, "a"),
    "nobody asked for ['a']": lambda books: books.stored.update(a=Stored("blue", "first")),
    # Executed, and not reported.
    "fourth reported error, and made ['c']": lambda books: make(books, "c", request="fourth"),
    "nobody asked for ['c']": lambda books: make(books, "c", request="fifth"),
    "3 Creates were executed and reported to nobody; 2 were": lambda books: make_all(books, "c", "d"),
    "2 keys are in no journal, after 1": lambda books: books.stored.update(
        c=Stored("red", "third"), d=Stored("red", "third")
    ),
    # Answers that were not to come.
    "met a standby at 12.50": lambda books: ask(books, Kind.GET, Outcome.NOT_MASTER, began=12.5),
    "met a standby at 9.00": lambda books: ask(books, Kind.GET, Outcome.NOT_MASTER, began=9.0),
    "Get of red, 0.10 s: error": lambda books: ask(books, Kind.GET, Outcome.ERROR),
    "Get of red, 0.10 s: unknown": lambda books: ask(books, Kind.GET, Outcome.UNKNOWN),
    "Get of another's key of red, 0.10 s: success": lambda books: ask(books, Kind.FOREIGN_GET, Outcome.SUCCESS),
    "Create of red, 0.10 s: closed": lambda books: ask(books, Kind.CREATE, Outcome.CLOSED),
    "Create of red, 0.10 s: silent": lambda books: ask(books, Kind.CREATE, Outcome.SILENT),
    "Get that breaks its session of red, 0.10 s: success": lambda books: ask(books, Kind.POISON, Outcome.SUCCESS),
    "Get that breaks its session of red, 0.10 s: silent": lambda books: ask(books, Kind.POISON, Outcome.SILENT),
    # Key managers that answer, and that the gateway turned away from.
    "kms-1 was healthy, and was taken for ejected for red (at 19": lambda books: turn(
        books, "kms-1", 19.7, credential="red"
    ),
    "kms-1 was healthy, and was taken for down for all (at 27": lambda books: turn(books, "kms-1", 27.1, "down"),
    "kms-2 was healthy, and was taken for ejected for all (at 20": lambda books: turn(books, "kms-2", 20.5),
    "kms-1 was slow, and was taken for ejected for all (at 41": lambda books: turn(books, "kms-1", 41.0),
    "kms-2 was healthy, and was taken for down for all (at 61": lambda books: turn(books, "kms-2", 61.0, "down"),
    "kms-2 was healthy, and was taken for ejected for blue": lambda books: turn(
        books, "kms-2", 61.0, credential="blue"
    ),
    "two keys are one": lambda books: books.oddities.append("two keys are one"),
}


def test_another_disturbance_excuses_a_slow_key_manager() -> None:
    books = good()
    during_both = Turn("kms-1", 42.0, 42.2, "ejected")
    assert books.condition(during_both) is Condition.SLOW
    books.disturbances.append(Disturbance("kms-1", "killed", 35.0, 38.0, grace=5.0))
    assert books.condition(during_both) is Condition.DISTURBED


def test_failed_reads_are_counted() -> None:
    books = good()
    assert books.failed_reads == []
    for kind, outcome in (
        (Kind.GET, Outcome.ERROR),
        (Kind.FOREIGN_GET, Outcome.UNKNOWN),
        (Kind.GET, Outcome.NOT_MASTER),
        (Kind.POISON, Outcome.ERROR),
        (Kind.CREATE, Outcome.ERROR),
    ):
        ask(books, kind, outcome)
    assert len(books.failed_reads) == 2
    assert "failed reads 2" in " ".join(books.sheet().split())


@pytest.mark.parametrize("words", MISTAKES)
def test_every_mistake_is_found(words: str) -> None:
    books = good()
    MISTAKES[words](books)
    assert any(words in mistake for mistake in books.mistakes()), books.mistakes()
