"""Where a client's requests go after a change, for how long, and for how many clients that is remembered."""

from gateway.identity import Identity, Principal
from gateway.policy import Effect
from gateway.upstream.affinity import Affinity

ATLANTA, LONDON = "atlanta", "london"


def client(subject: str = "CN=alice", identity: str = "apps", ends: float = 10.0) -> Principal:
    return Principal(Identity(identity, shared=False), "CN=ca", subject, 0, ends)


def prefers(affinity: Affinity, principal: Principal, effect: Effect, now: float) -> str | None:
    """The backend that a request of this effect should go to, if any."""
    return next(iter(affinity.stays(principal, now, is_bound=effect is Effect.BOUND)), None)


def test_after_a_change_all_requests_of_that_client_follow_it_for_the_window() -> None:
    affinity = Affinity(10.0, is_shared=False)

    affinity.note(client(), Effect.MUTATE, ATLANTA, 100.0)

    assert [prefers(affinity, client(), effect, 109.9) for effect in Effect] == [ATLANTA] * len(Effect)
    assert prefers(affinity, client(), Effect.READ, 110.0) is None


def test_a_client_is_rule_issuer_and_subject_and_no_other_follows() -> None:
    affinity = Affinity(is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)

    assert prefers(affinity, client(ends=99.0), Effect.READ, 1.0) is ATLANTA  # its certificate was renewed
    assert prefers(affinity, client("CN=bob"), Effect.READ, 1.0) is None
    assert prefers(affinity, client(identity="others"), Effect.READ, 1.0) is None


def test_the_last_change_counts() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 9.0)

    assert prefers(affinity, client(), Effect.READ, 18.0) is LONDON


def test_all_the_backends_that_were_changed_within_the_window_are_remembered_the_last_one_first() -> None:
    affinity = Affinity(10.0, is_shared=False)
    assert affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    assert affinity.note(client(), Effect.MUTATE, LONDON, 5.0)
    assert not affinity.note(client(), Effect.MUTATE, LONDON, 6.0)

    assert affinity.stays(client(), 7.0, is_bound=False) == [LONDON, ATLANTA]
    assert affinity.stays(client(), 12.0, is_bound=False) == [LONDON]


def test_what_binds_for_ever_and_what_does_not_are_apart() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.BOUND, LONDON, 1.0)

    assert affinity.stays(client(), 2.0, is_bound=False) == [ATLANTA]
    assert affinity.stays(client(), 2.0, is_bound=True) == [LONDON, ATLANTA]


def test_what_did_not_run_is_dropped() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 0.0)

    affinity.drop(client(), Effect.MUTATE, LONDON)
    assert affinity.stays(client(), 1.0, is_bound=False) == [ATLANTA]
    affinity.drop(client(), Effect.MUTATE, ATLANTA)
    assert len(affinity) == 0


def test_reads_leave_nothing_behind() -> None:
    affinity = Affinity(is_shared=False)
    for effect in (Effect.READ, Effect.TOUCH, Effect.CONSUME):
        affinity.note(client(), effect, ATLANTA, 0.0)

    assert len(affinity) == 0


def test_where_objects_are_shared_only_what_a_server_holds_for_itself_binds() -> None:
    affinity = Affinity(is_shared=True)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    assert prefers(affinity, client(), Effect.BOUND, 0.0) is None

    affinity.note(client(), Effect.BOUND, ATLANTA, 0.0)

    assert prefers(affinity, client(), Effect.BOUND, 1.0) is ATLANTA
    assert prefers(affinity, client(), Effect.READ, 1.0) is None
    assert prefers(affinity, client(), Effect.MUTATE, 1.0) is None


def test_what_has_ended_is_forgotten_and_no_more_clients_are_kept_than_may_be() -> None:
    affinity = Affinity(10.0, is_shared=False, most=3)
    for number in range(5):
        affinity.note(client(f"CN={number}"), Effect.MUTATE, ATLANTA, number)

    assert len(affinity) == 3
    assert prefers(affinity, client("CN=1"), Effect.READ, 5.0) is None
    assert prefers(affinity, client("CN=2"), Effect.READ, 5.0) is ATLANTA

    affinity.note(client(), Effect.MUTATE, LONDON, 100.0)
    assert repr(affinity) == "<Affinity of 1 clients>"
