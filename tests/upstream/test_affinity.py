"""Where a client's requests go after a change, for how long, and for how many clients that is remembered."""

from gateway.identity import Identity, Principal
from gateway.policy import Effect
from gateway.upstream.affinity import Affinity
from gateway.upstream.backend import Backend
from gateway.upstream.slots import Slots

ATLANTA, LONDON = (Backend(name, Slots(1), {}) for name in ("atlanta", "london"))


def client(subject: str = "CN=alice", identity: str = "apps", ends: float = 10.0) -> Principal:
    return Principal(Identity(identity, shared=False), "CN=ca", subject, 0, ends)


def test_after_a_change_all_requests_of_that_client_follow_it_for_the_window() -> None:
    affinity = Affinity(10.0, is_shared=False)

    affinity.note(client(), Effect.MUTATE, ATLANTA, 100.0)

    assert [affinity.prefers(client(), effect, 109.9) for effect in Effect] == [ATLANTA] * len(Effect)
    assert affinity.prefers(client(), Effect.READ, 110.0) is None


def test_a_client_is_rule_issuer_and_subject_and_no_other_follows() -> None:
    affinity = Affinity(is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)

    assert affinity.prefers(client(ends=99.0), Effect.READ, 1.0) is ATLANTA  # its certificate was renewed
    assert affinity.prefers(client("CN=bob"), Effect.READ, 1.0) is None
    assert affinity.prefers(client(identity="others"), Effect.READ, 1.0) is None


def test_the_last_change_counts() -> None:
    affinity = Affinity(10.0, is_shared=False)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    affinity.note(client(), Effect.MUTATE, LONDON, 9.0)

    assert affinity.prefers(client(), Effect.READ, 18.0) is LONDON


def test_reads_leave_nothing_behind() -> None:
    affinity = Affinity(is_shared=False)
    for effect in (Effect.READ, Effect.TOUCH, Effect.CONSUME):
        affinity.note(client(), effect, ATLANTA, 0.0)

    assert len(affinity) == 0


def test_where_objects_are_shared_only_what_a_server_holds_for_itself_binds() -> None:
    affinity = Affinity(is_shared=True)
    affinity.note(client(), Effect.MUTATE, ATLANTA, 0.0)
    assert affinity.prefers(client(), Effect.BOUND, 0.0) is None

    affinity.note(client(), Effect.BOUND, ATLANTA, 0.0)

    assert affinity.prefers(client(), Effect.BOUND, 1.0) is ATLANTA
    assert affinity.prefers(client(), Effect.READ, 1.0) is None
    assert affinity.prefers(client(), Effect.MUTATE, 1.0) is None


def test_what_has_ended_is_forgotten_and_no_more_clients_are_kept_than_may_be() -> None:
    affinity = Affinity(10.0, is_shared=False, most=3)
    for number in range(5):
        affinity.note(client(f"CN={number}"), Effect.MUTATE, ATLANTA, number)

    assert len(affinity) == 3
    assert affinity.prefers(client("CN=1"), Effect.READ, 5.0) is None
    assert affinity.prefers(client("CN=2"), Effect.READ, 5.0) is ATLANTA

    affinity.note(client(), Effect.MUTATE, LONDON, 100.0)
    assert repr(affinity) == "<Affinity of 1 clients>"
