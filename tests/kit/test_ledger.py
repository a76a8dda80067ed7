"""The ledger finds no mistake in a correct run, and finds each mistake that is added to it."""

from collections.abc import Callable

import pytest
from kmip_lab.keymanager.journal import SUCCESS, Entry

from tests.kit.ledger import Condition, Disturbance, Exchange, Exclusion, Ledger, Outcome, RequestKind, Standby, Stored


def created(uid: str, owner: str = "red") -> Entry:
    return Entry(0.0, "kms-1", owner, "Create", [uid], SUCCESS)


def exchange(kind: RequestKind, outcome: Outcome, uid: str = "", request: str = "", began: float = 0.0) -> Exchange:
    return Exchange(began, 0.1, "red", kind, outcome, uid, request)


def correct_ledger() -> Ledger:
    """Return a ledger with one Create that succeeded, two unknown ones of which one was executed, and one failed."""
    ledger = Ledger(kills=1, standbys=[Standby("kms-1", 10.0, 15.0)], detection_time=2.0)
    ledger.exchanges = [
        exchange(RequestKind.CREATE, Outcome.SUCCESS, "a", "first"),
        exchange(RequestKind.CREATE, Outcome.UNKNOWN, request="second"),
        exchange(RequestKind.CREATE, Outcome.UNKNOWN, request="third"),
        exchange(RequestKind.CREATE, Outcome.ERROR, request="fourth"),
        exchange(RequestKind.GET, Outcome.SUCCESS, "a"),
        exchange(RequestKind.GET, Outcome.NOT_MASTER, "a", began=11.0),
        exchange(RequestKind.FOREIGN_GET, Outcome.NOT_FOUND, "a"),
        exchange(RequestKind.POISON, Outcome.ERROR, "poison"),
    ]
    ledger.disturbances = [
        Disturbance("kms-1", "frozen", 20.0, 25.0, grace=2.0),
        Disturbance("kms-1", "slow", 40.0, 45.0, is_slow=True),
        Disturbance("kms-2", "refused", 60.0, 65.0, grace=2.0, credential="red"),
    ]
    ledger.exclusions = [
        Exclusion("kms-1", 19.8, 20.1, "ejected", "red"),
        Exclusion("kms-1", 26.9, 27.1, "down"),
        Exclusion("kms-2", 64.0, 64.2, "ejected", "red"),
    ]
    ledger.entries = [created("a"), created("b"), Entry(0.0, "kms-1", "red", "Create", [], "GeneralFailure")]
    ledger.stored = {"a": Stored("red", "first"), "b": Stored("red", "second")}
    return ledger


def test_a_correct_ledger_has_no_mistakes() -> None:
    assert correct_ledger().mistakes() == []


def test_one_missing_journal_entry_for_each_kill_is_no_mistake() -> None:
    ledger = correct_ledger()
    ledger.entries.remove(created("b"))
    assert ledger.mistakes() == []
    rows = dict(line.rsplit(maxsplit=1) for line in ledger.summary().splitlines())
    assert rows["Create: executed, according to the journals"] == "1"
    assert rows["Create: executed, but not reported"] == "1"


def make(ledger: Ledger, uid: str, owner: str = "red", request: str = "first") -> None:
    ledger.entries.append(created(uid, owner))
    ledger.stored[uid] = Stored(owner, request)


def make_all(ledger: Ledger, *uids: str) -> None:
    for uid in uids:
        make(ledger, uid)


def ask(ledger: Ledger, kind: RequestKind, outcome: Outcome, uid: str = "", began: float = 0.0) -> None:
    ledger.exchanges.append(exchange(kind, outcome, uid, "another", began))


def exclusion(ledger: Ledger, name: str, after: float, state: str = "ejected", credential: str = "") -> None:
    ledger.exclusions.append(Exclusion(name, after, after + 0.2, state, credential))


MISTAKES: dict[str, Callable[[Ledger], object]] = {
    # Executed twice, according to journal and store or to one of them.
    "first reported a, and made ['a', 'c']": lambda ledger: make(ledger, "c"),
    "second is unknown, and made ['b', 'c']": lambda ledger: make(ledger, "c", request="second"),
    "a was executed 2 times by the journals, 1 by the store": lambda ledger: ledger.entries.append(created("a")),
    # Reported, and not executed, or for another owner.
    "first reported a, and made []": lambda ledger: ledger.stored.pop("a"),
    "a was executed 1 times by the journals, 0 by the store": lambda ledger: ledger.stored.pop("a"),
    "1 keys were reported and are in no journal": lambda ledger: ledger.entries.remove(created("a")),
    "another reported a, and made []": lambda ledger: ask(ledger, RequestKind.CREATE, Outcome.SUCCESS, "a"),
    "no request for ['a']": lambda ledger: ledger.stored.update(a=Stored("blue", "first")),
    # Executed, and not reported.
    "fourth reported error, and made ['c']": lambda ledger: make(ledger, "c", request="fourth"),
    "no request for ['c']": lambda ledger: make(ledger, "c", request="fifth"),
    "3 keys were made by Creates without success; 2 Creates": lambda ledger: make_all(ledger, "c", "d"),
    "2 keys are in no journal, after 1": lambda ledger: ledger.stored.update(
        c=Stored("red", "third"), d=Stored("red", "third")
    ),
    # Answers that are not allowed.
    "met a standby at 12.50": lambda ledger: ask(ledger, RequestKind.GET, Outcome.NOT_MASTER, began=12.5),
    "met a standby at 9.00": lambda ledger: ask(ledger, RequestKind.GET, Outcome.NOT_MASTER, began=9.0),
    "Get of red, 0.10 s: error": lambda ledger: ask(ledger, RequestKind.GET, Outcome.ERROR),
    "Get of red, 0.10 s: unknown": lambda ledger: ask(ledger, RequestKind.GET, Outcome.UNKNOWN),
    "Get of another's key of red, 0.10 s: success": lambda ledger: ask(
        ledger, RequestKind.FOREIGN_GET, Outcome.SUCCESS
    ),
    "Create of red, 0.10 s: closed": lambda ledger: ask(ledger, RequestKind.CREATE, Outcome.CLOSED),
    "Create of red, 0.10 s: silent": lambda ledger: ask(ledger, RequestKind.CREATE, Outcome.SILENT),
    "Get that breaks its session of red, 0.10 s: success": lambda ledger: ask(
        ledger, RequestKind.POISON, Outcome.SUCCESS
    ),
    "Get that breaks its session of red, 0.10 s: silent": lambda ledger: ask(
        ledger, RequestKind.POISON, Outcome.SILENT
    ),
    # Key managers that answer, and that the gateway excluded.
    "kms-1 was healthy, and the gateway set it to ejected for red (at 19": lambda ledger: exclusion(
        ledger, "kms-1", 19.7, credential="red"
    ),
    "kms-1 was healthy, and the gateway set it to down for all (at 27": lambda ledger: exclusion(
        ledger, "kms-1", 27.1, "down"
    ),
    "kms-2 was healthy, and the gateway set it to ejected for all (at 20": lambda ledger: exclusion(
        ledger, "kms-2", 20.5
    ),
    "kms-1 was slow, and the gateway set it to ejected for all (at 41": lambda ledger: exclusion(ledger, "kms-1", 41.0),
    "kms-2 was healthy, and the gateway set it to down for all (at 61": lambda ledger: exclusion(
        ledger, "kms-2", 61.0, "down"
    ),
    "kms-2 was healthy, and the gateway set it to ejected for blue": lambda ledger: exclusion(
        ledger, "kms-2", 61.0, credential="blue"
    ),
    "a has two values": lambda ledger: ledger.anomalies.append("a has two values"),
}


def test_another_disturbance_excuses_a_slow_key_manager() -> None:
    ledger = correct_ledger()
    during_both = Exclusion("kms-1", 42.0, 42.2, "ejected")
    assert ledger.condition(during_both) is Condition.SLOW
    ledger.disturbances.append(Disturbance("kms-1", "killed", 35.0, 38.0, grace=5.0))
    assert ledger.condition(during_both) is Condition.DISTURBED


def test_failed_reads_are_counted() -> None:
    ledger = correct_ledger()
    assert ledger.failed_reads == []
    for kind, outcome in (
        (RequestKind.GET, Outcome.ERROR),
        (RequestKind.FOREIGN_GET, Outcome.UNKNOWN),
        (RequestKind.GET, Outcome.NOT_MASTER),
        (RequestKind.POISON, Outcome.ERROR),
        (RequestKind.CREATE, Outcome.ERROR),
    ):
        ask(ledger, kind, outcome)
    assert len(ledger.failed_reads) == 2
    assert "failed reads 2" in " ".join(ledger.summary().split())


@pytest.mark.parametrize("words", MISTAKES)
def test_every_mistake_is_found(words: str) -> None:
    ledger = correct_ledger()
    MISTAKES[words](ledger)
    assert any(words in mistake for mistake in ledger.mistakes()), ledger.mistakes()
