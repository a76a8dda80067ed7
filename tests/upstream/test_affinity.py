"""Where a client's requests go after a change, for how long, and for how many clients that is remembered."""

from gateway.identity import Identity, Principal
from gateway.policy import Effect
from gateway.upstream.affinity import Affinity, Stay

ATLANTA, LONDON = "atlanta", "london"


def client(subject: str = "CN=alice", identity: str = "apps", ends: float = 10.0, issuer: str = "CN=ca") -> Principal:
    return Principal(Identity(identity, shared=False), issuer, subject, 0, ends)


def stays(affinity: Affinity, principal: Principal, now: float, *, is_bound: bool = False) -> list[str]:
    return [stay.backend for stay in affinity.stays(principal, now, is_bound=is_bound)]


def prefers(affinity: Affinity, principal: Principal, effect: Effect, now: float) -> str | None:
    """The backend that a request of this effect should go to, if any."""
    return next(iter(stays(affinity, principal, now, is_bound=effect is Effect.BOUND)), None)


def test_after_a_change_all_requests_of_that_client_follow_it_for_the_window() -> None:
    affinity = Affinity(10.0, is_shared=False)

    affinity.note(client(), Effect.MUTATE, ATLANTA, 100.0)

    assert [prefers(affinity, client(), effect, 109.9) for effect in Effect] == [ATLANTA] * len(Effect)
    assert prefers(affinity, client(), Effect.READ, 110.0) is None


def test_a_client_is_rule_issuer_and_subject_and_no_other_follows() -> None:
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


def test_all_the_backends_that_were_changed_within_the_window_are_remembered_the_last_one_first() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 5.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 6.0)

    assert stays(affinity, client(), 7.0) == [LONDON, ATLANTA]
    assert stays(affinity, client(), 12.0) == [LONDON]


def test_what_binds_for_ever_and_what_does_not_are_apart() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.BOUND, LONDON, 1.0)

    assert stays(affinity, client(), 2.0) == [ATLANTA]
    assert stays(affinity, client(), 2.0, is_bound=True) == [LONDON, ATLANTA]

    affinity.note(client(), Effect.MUTATE, ATLANTA, 3.0)
    assert stays(affinity, client(), 4.0, is_bound=True) == [LONDON, ATLANTA]


def noted(affinity: Affinity, backend: str, now: float) -> Stay:
    stay = affinity.note(client(), Effect.MUTATE, backend, now)
    assert stay is not None
    return stay


def test_what_did_not_run_is_dropped() -> None:
    affinity = Affinity(10.0, is_shared=False)
    atlanta, london = noted(affinity, ATLANTA, 0.0), noted(affinity, LONDON, 0.0)

    affinity.drop(client(), london)
    assert stays(affinity, client(), 1.0) == [ATLANTA]
    affinity.drop(client(), atlanta)
    assert len(affinity) == 0


def test_what_did_not_run_ends_no_stay_that_something_else_has_begun() -> None:
    affinity = Affinity(10.0, is_shared=False)
    failed, ran = noted(affinity, ATLANTA, 0.0), noted(affinity, ATLANTA, 1.0)
    affinity.drop(client(), failed)
    assert stays(affinity, client(), 2.0) == [ATLANTA]

    again = noted(affinity, ATLANTA, 20.0)
    affinity.drop(client(), ran)  # its window was over: this is another
    assert stays(affinity, client(), 21.0) == [ATLANTA]
    affinity.drop(client(), again)
    assert len(affinity) == 0


def test_where_somebody_under_an_identity_has_changed_something_is_known_for_the_window() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)

    assert affinity.changed_lately("apps", ATLANTA, 9.0)
    assert not affinity.changed_lately("apps", LONDON, 9.0)
    assert not affinity.changed_lately("others", ATLANTA, 9.0)
    assert not affinity.changed_lately("apps", ATLANTA, 10.0)

    affinity.note(client(), Effect.MUTATE, LONDON, 20.0)
    assert len(affinity._changed) == 1


def test_of_what_was_destroyed_the_last_is_remembered() -> None:
    stay = noted(Affinity(10.0, is_shared=False), ATLANTA, 0.0)
    stay.destroyed([str(number).encode() for number in range(1001)])
    assert (len(stay.gone), b"0" in stay.gone, b"1000" in stay.gone) == (1000, False, True)


def test_reads_leave_nothing_behind() -> None:
    affinity = Affinity(10.0, is_shared=False)
    for effect in (Effect.READ, Effect.TOUCH, Effect.CONSUME):
        affinity.note(client(), effect, ATLANTA, 0.0)

    assert len(affinity) == 0


def test_where_objects_are_shared_only_what_a_server_holds_for_itself_binds() -> None:
    affinity = Affinity(10.0, is_shared=True)
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
