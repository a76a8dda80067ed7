"""Affinity: the preferred backends of a client after a change, and the bounds of that memory."""

from gateway.identity import Identity, Principal
from gateway.policy import Effect
from gateway.upstream.affinity import Affinity, AffinityEntry

ATLANTA, LONDON = "atlanta", "london"


def client(subject: str = "CN=alice", identity: str = "apps", ends: float = 10.0, issuer: str = "CN=ca") -> Principal:
    return Principal(Identity(identity, shared=False), issuer, subject, 0, ends)


def preferred(affinity: Affinity, principal: Principal, now: float, *, is_stateful: bool = False) -> list[str]:
    return [entry.backend for entry in affinity.entries(principal, now, is_stateful=is_stateful)]


def prefers(affinity: Affinity, principal: Principal, effect: Effect, now: float) -> str | None:
    """Return the backend that a request of this effect prefers, or None."""
    return next(iter(preferred(affinity, principal, now, is_stateful=effect is Effect.STATEFUL)), None)


def test_after_a_change_all_requests_of_the_client_follow_it() -> None:
    affinity = Affinity(10.0, is_shared=False)

    affinity.note(client(), Effect.MUTATE, ATLANTA, 100.0)

    assert [prefers(affinity, client(), effect, 109.9) for effect in Effect] == [ATLANTA] * len(Effect)
    assert prefers(affinity, client(), Effect.READ, 110.0) is None


def test_a_client_is_identity_issuer_and_subject() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)

    assert prefers(affinity, client(ends=99.0), Effect.READ, 1.0) is ATLANTA  # its certificate was renewed
    assert prefers(affinity, client("CN=bob"), Effect.READ, 1.0) is None
    assert prefers(affinity, client(identity="others"), Effect.READ, 1.0) is None
    assert prefers(affinity, client(issuer="CN=other ca"), Effect.READ, 1.0) is None


def test_the_last_change_counts() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 9.0)

    assert prefers(affinity, client(), Effect.READ, 18.0) is LONDON


def test_all_entries_of_the_window_are_returned_the_latest_first() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 5.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 6.0)

    assert preferred(affinity, client(), 7.0) == [LONDON, ATLANTA]
    assert preferred(affinity, client(), 12.0) == [LONDON]


def test_stateful_entries_and_entries_of_changes_are_apart() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.STATEFUL, LONDON, 1.0)

    assert preferred(affinity, client(), 2.0) == [ATLANTA]
    assert preferred(affinity, client(), 2.0, is_stateful=True) == [LONDON, ATLANTA]

    affinity.note(client(), Effect.MUTATE, ATLANTA, 3.0)
    assert preferred(affinity, client(), 4.0, is_stateful=True) == [LONDON, ATLANTA]


def noted(affinity: Affinity, backend: str, now: float) -> AffinityEntry:
    entry = affinity.note(client(), Effect.MUTATE, backend, now)
    assert entry is not None
    return entry


def test_the_entry_of_a_change_that_did_not_run_is_dropped() -> None:
    affinity = Affinity(10.0, is_shared=False)
    atlanta, london = noted(affinity, ATLANTA, 0.0), noted(affinity, LONDON, 0.0)

    affinity.drop(client(), london)
    assert preferred(affinity, client(), 1.0) == [ATLANTA]
    affinity.drop(client(), atlanta)
    assert len(affinity) == 0


def test_an_entry_that_another_request_renewed_is_not_dropped() -> None:
    affinity = Affinity(10.0, is_shared=False)
    failed, ran = noted(affinity, ATLANTA, 0.0), noted(affinity, ATLANTA, 1.0)
    affinity.drop(client(), failed)
    assert preferred(affinity, client(), 2.0) == [ATLANTA]

    again = noted(affinity, ATLANTA, 20.0)
    affinity.drop(client(), ran)  # its window was over: the entry is a new one
    assert preferred(affinity, client(), 21.0) == [ATLANTA]
    affinity.drop(client(), again)
    assert len(affinity) == 0


def test_backends_that_an_identity_changed_are_known_for_the_window() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)

    assert affinity.changed_lately("apps", ATLANTA, 9.0)
    assert not affinity.changed_lately("apps", LONDON, 9.0)
    assert not affinity.changed_lately("others", ATLANTA, 9.0)
    assert not affinity.changed_lately("apps", ATLANTA, 10.0)

    affinity.note(client(), Effect.MUTATE, LONDON, 20.0)
    assert len(affinity._changed) == 1


def test_only_the_last_thousand_destroyed_objects_are_remembered() -> None:
    entry = noted(Affinity(10.0, is_shared=False), ATLANTA, 0.0)
    entry.add_destroyed([str(number).encode() for number in range(1001)])
    assert (len(entry.destroyed_ids), b"0" in entry.destroyed_ids, b"1000" in entry.destroyed_ids) == (
        1000,
        False,
        True,
    )


def test_reads_leave_nothing_behind() -> None:
    affinity = Affinity(10.0, is_shared=False)
    for effect in (Effect.READ, Effect.TOUCH, Effect.CONSUME):
        affinity.note(client(), effect, ATLANTA, 0.0)

    assert len(affinity) == 0


def test_in_mode_shared_only_stateful_requests_create_entries() -> None:
    affinity = Affinity(10.0, is_shared=True)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    assert prefers(affinity, client(), Effect.STATEFUL, 0.0) is None

    affinity.note(client(), Effect.STATEFUL, ATLANTA, 0.0)

    assert prefers(affinity, client(), Effect.STATEFUL, 1.0) is ATLANTA
    assert prefers(affinity, client(), Effect.READ, 1.0) is None
    assert prefers(affinity, client(), Effect.MUTATE, 1.0) is None


def test_expired_clients_and_the_oldest_over_the_limit_are_forgotten() -> None:
    affinity = Affinity(10.0, is_shared=False, max_clients=3)
    for number in range(5):
        affinity.note(client(f"CN={number}"), Effect.MUTATE, ATLANTA, number)

    assert len(affinity) == 3
    assert prefers(affinity, client("CN=1"), Effect.READ, 5.0) is None
    assert prefers(affinity, client("CN=2"), Effect.READ, 5.0) is ATLANTA

    affinity.note(client(), Effect.MUTATE, LONDON, 100.0)
    assert repr(affinity) == "<Affinity of 1 clients>"
