"""Tests of slots: the pool that opens the next session, and the session that is closed for it."""

import random
from typing import NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.errors import BackendError, Stage
from gateway.upstream.gate import Gate
from gateway.upstream.maintenance import maintain_pools
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import SETTINGS, FakeKeyManager, in_virtual_time, lease, make_pool, use

NEVER = float("inf")


class Clock:
    """The time outside of trio; tests set it."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Clock:
    clock = Clock()
    if "nursery" not in request.fixturenames:
        monkeypatch.setattr(trio, "current_time", lambda: clock.now)
    return clock


class OpenGate(Gate):
    """A gate that lets every handshake begin, so that slots alone decide."""

    def has_room(self, now: float) -> bool:
        return now >= 0


class FakePoolMember:
    """A pool that holds ``holds`` slots; ``idle_since`` is None if all its sessions are busy.

    ``waits`` and ``warms`` are the numbers of sessions that the pool needs. ``looked_at`` counts the calls by Slots.
    """

    def __init__(
        self,
        slots: Slots,
        holds: int = 0,
        *,
        idle_since: float | None = None,
        waits: int = 0,
        warms: int = 0,
        since: float | None = None,
    ) -> None:
        self.slots = slots
        self.waits, self.warms = waits, warms
        self.since = trio.current_time() if since is None else since
        self.idle_at = idle_since
        self.opened = self.evicted = self.looked_at = 0
        self.errors: list[BackendError] = []
        self.disconnected = 0
        for _ in range(holds):
            slots._take(self)
            slots.gate.under_way -= 1

    @property
    def held(self) -> int:
        return self.slots.held(self)

    @property
    def waiting_since(self) -> float:
        self.looked_at += 1
        return self.since if self.waits else NEVER

    @property
    def idle_since(self) -> float:
        self.looked_at += 1
        return NEVER if self.idle_at is None or self.held == 0 else self.idle_at

    @property
    def needs_session(self) -> bool:
        self.looked_at += 1
        return self.waits > 0

    @property
    def needs_warm_session(self) -> bool:
        self.looked_at += 1
        return self.warms > 0

    def close_oldest_idle(self) -> None:
        assert self.idle_at is not None
        self.evicted += 1

    def close_disconnected(self) -> None:
        self.disconnected += 1

    def begin_to_open(self) -> None:
        self.opened += 1
        if self.waits:
            self.waits -= 1
        else:
            self.warms -= 1

    def fail_waiters(self, error: BackendError) -> None:
        self.errors.append(error)


def slots_of(limit: int) -> Slots:
    return Slots(limit, gate=OpenGate())


def wanting(slots: Slots, waits: int = 1) -> FakePoolMember:
    """Return a pool without a slot that has just queued."""
    member = FakePoolMember(slots, waits=waits)
    slots.want(member)
    return member


# Taking ------------------------------------------------------------------------------------------------------------


def test_no_more_slots_are_taken_than_the_limit() -> None:
    slots = slots_of(3)
    red, blue = wanting(slots, 2), wanting(slots, 2)

    assert (red.opened, blue.opened) == (2, 1)
    assert repr(slots) == "<Slots 3 of 3>"
    assert not slots.has_room()
    assert slots.free == 0


def test_the_gate_bounds_the_slots_that_are_taken_at_once() -> None:
    slots = Slots(10)
    red = wanting(slots, 10)
    assert (red.opened, slots.gate.under_way) == (4, 4)

    slots.opened(0.1)

    assert (red.opened, slots.gate.under_way, slots.gate.limit) == (6, 5, 5)
    assert slots.used == 6


def test_a_slot_whose_session_was_not_opened_is_free_again() -> None:
    slots = Slots(1)
    red = wanting(slots)
    blue = wanting(slots)
    slots.not_opened(red)
    assert (red.held, blue.held, blue.opened) == (0, 1, 1)
    slots.not_opened(blue)
    assert (slots.used, slots.gate.under_way) == (0, 0)


def test_a_queued_pool_that_needs_nothing_is_skipped() -> None:
    slots = slots_of(1)
    giver = FakePoolMember(slots, 1)
    gave_up, stays = wanting(slots), wanting(slots)
    gave_up.waits = 0

    slots.release(giver)

    assert (gave_up.opened, stays.opened) == (0, 1)


def test_a_pool_that_was_closed_is_forgotten() -> None:
    slots = slots_of(1)
    giver = FakePoolMember(slots, 1)
    closed = wanting(slots)

    assert slots.forget(closed) == []
    slots.release(giver)

    assert (closed.opened, slots.used) == (0, 0)


def test_a_failure_reaches_every_waiting_pool() -> None:
    slots = slots_of(2)
    holder = FakePoolMember(slots, 2)
    without = wanting(slots)
    holder.waits = 1
    slots.want(holder)
    idler = FakePoolMember(slots)
    error = BackendError("refused", backend="atlanta", stage=Stage.CONNECT, reason="connect")

    slots.fail_waiting(error)

    assert (without.errors, holder.errors, idler.errors) == ([error], [error], [])


# Order -------------------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """A pool in the table below: its slots and its needs."""

    holds: int = 0
    waits: int = 0
    warms: int = 0


WARM, WAITS = Pool(warms=1), Pool(waits=1)


@pytest.mark.parametrize(
    ("pools", "order"),
    [
        ([WAITS, WAITS, WAITS], "abc"),  # the longest-queued first
        ([Pool(1, waits=1), WAITS], "ba"),  # 1: a pool without a session
        ([WARM, WAITS], "ba"),
        ([WARM, Pool(1, waits=1), WAITS], "cba"),
        ([Pool(3, waits=1), Pool(1, waits=1), Pool(2, waits=1)], "bca"),  # 2: the pool with fewest sessions
        ([Pool(1, waits=3), Pool(2, waits=3)], "ababab"),
        ([WARM, Pool(3, waits=1)], "ba"),  # 3: warm sessions come last,
        ([Pool(1, warms=2), WARM], "baa"),  # of pools without a session first,
        ([Pool(1, warms=2), Pool(1, warms=2)], "abab"),  # else in turn
        ([Pool(waits=2), Pool(waits=2), Pool(waits=1)], "abcab"),
    ],
)
def test_slots_are_taken_in_order(pools: list[Pool], order: str) -> None:
    held = sum(pool.holds for pool in pools)
    slots = slots_of(held)
    members = {
        name: FakePoolMember(slots, pool.holds, waits=pool.waits, warms=pool.warms)
        for name, pool in zip("abc", pools, strict=False)
    }
    for member in members.values():
        (slots.want if member.waits else slots.want_warm)(member)

    taken = ""
    for _ in range(len(order)):
        before = {name: member.opened for name, member in members.items()}
        slots.limit += 1
        slots.serve()
        taken += "".join(name for name, member in members.items() if member.opened > before[name])

    assert taken == order


# The reserve -------------------------------------------------------------------------------------------------------


def lose_last(slots: Slots, number: int) -> list[FakePoolMember]:
    """Return so many pools that have just lost their last slot."""
    lost = [FakePoolMember(slots, 1) for _ in range(number)]
    for member in lost:
        slots.release(member)
    return lost


@pytest.mark.parametrize(
    ("limit", "lost", "after", "opened"),
    [
        (16, 0, 0.0, 16),
        (16, 1, 0.0, 15),  # one slot for each pool that lost its last session,
        (16, 2, 0.0, 14),
        (16, 9, 0.0, 14),  # an eighth at most,
        (64, 20, 0.0, 56),
        (4, 3, 0.0, 3),  # but one,
        (16, 2, 59.0, 14),
        (16, 2, 61.0, 16),  # for a minute
        (1, 1, 0.0, 1),  # a pool without a session takes any slot
    ],
)
def test_a_pool_with_sessions_leaves_slots_to_pools_that_lost_theirs(
    clock: Clock, limit: int, lost: int, after: float, opened: int
) -> None:
    slots = slots_of(limit)
    lose_last(slots, lost)
    clock.now += after

    hog = wanting(slots, limit)

    assert hog.opened == opened


def test_a_reserved_slot_goes_to_the_pool_that_lost_its_last() -> None:
    slots = slots_of(8)
    (lost,) = lose_last(slots, 1)
    wanting(slots, 8)
    assert slots.used == 7

    lost.waits = 1
    slots.want(lost)

    assert (lost.opened, slots.used) == (1, 8)


def test_a_pool_without_a_session_warms_up_in_a_reserved_slot() -> None:
    """This holds also while a different pool always waits for more."""
    slots = slots_of(4)
    lost = lose_last(slots, 2)
    wanting(slots, 10)
    assert slots.used == 3

    for member in lost:
        member.warms = 2
        slots.want_warm(member)

    assert [member.opened for member in lost] == [1, 0]


def test_a_single_pool_warms_up_again_in_a_single_slot() -> None:
    slots = slots_of(1)
    (red,) = lose_last(slots, 1)
    red.warms = 1
    slots.want_warm(red)
    assert red.opened == 1


def test_pools_that_lost_their_sessions_together_all_warm_up_again() -> None:
    slots = slots_of(4)
    pools = lose_last(slots, 4)
    for member in pools:
        member.warms = 1
        slots.want_warm(member)
    assert [member.opened for member in pools] == [1] * 4


def test_a_credential_that_is_refused_has_no_slot_reserved(clock: Clock) -> None:
    slots = Slots(4)
    refused = wanting(slots)
    slots.not_opened(refused)
    clock.now += 1

    hog = wanting(slots, 4)

    assert hog.opened == 4


def test_the_reserve_shrinks_with_the_ceiling() -> None:
    slots = slots_of(64)
    slots.ceiling.value = 4
    slots.ceiling._pause.failed(trio.current_time())
    lose_last(slots, 8)

    hog = wanting(slots, 64)

    assert hog.opened == 3


# Eviction ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taker", "holder", "unused_for", "moves"),
    [
        (0, 1, 0.0, True),  # the taker has no session
        (0, 5, 0.0, True),
        (1, 3, 0.0, True),  # the pools get more even
        (1, 2, 0.0, False),  # the pools would only swap
        (3, 2, 0.9, False),
        (3, 2, 1.0, True),  # clients have not used it for a second
        (2, 1, 1.0, False),
        (2, 1, 59.0, False),  # the last session is kept for a minute,
        (2, 1, 60.0, False),  # and longer if the taker holds half of the slots
        (2, 1, 1e6, False),
    ],
)
def test_an_idle_session_is_closed_if_that_is_worth_a_handshake(
    taker: int, holder: int, unused_for: float, moves: bool
) -> None:
    slots = slots_of(taker + holder)
    red = FakePoolMember(slots, holder, idle_since=trio.current_time() - unused_for)
    blue = FakePoolMember(slots, taker, waits=1)

    slots.want(blue)

    assert (blue.opened, red.evicted) == (moves, moves)
    assert (red.held, blue.held) == (holder - moves, taker + moves)
    assert slots.used == taker + holder


@pytest.mark.parametrize(("unused_for", "opened"), [(59.0, 1), (61.0, 4)])
def test_warm_sessions_that_clients_do_not_use_make_room(unused_for: float, opened: int) -> None:
    """Eight identities hold one slot each of eight: a busy identity must get more than its own."""
    slots = slots_of(8)
    for _ in range(7):
        FakePoolMember(slots, 1, idle_since=trio.current_time() - unused_for)

    busy = wanting(slots, 8)

    assert busy.opened == opened


def test_a_session_is_taken_from_the_pool_that_holds_most() -> None:
    slots = slots_of(5)
    now = trio.current_time()
    red, green = FakePoolMember(slots, 2, idle_since=now - 9), FakePoolMember(slots, 3, idle_since=now)
    wanting(slots)
    assert (red.evicted, green.evicted) == (0, 1)


def test_among_equals_the_least_recently_used_pool_loses_a_session() -> None:
    slots = slots_of(6)
    now = trio.current_time()
    pools = [FakePoolMember(slots, 2, idle_since=now - unused_for) for unused_for in (1, 3, 2)]
    wanting(slots)
    assert [pool.evicted for pool in pools] == [0, 1, 0]


def test_a_pool_whose_sessions_are_busy_is_passed_over() -> None:
    slots = slots_of(6)
    red, green = FakePoolMember(slots, 2, idle_since=trio.current_time()), FakePoolMember(slots, 4)
    blue = wanting(slots)
    assert (red.held, green.held, blue.held) == (1, 4, 1)


def test_no_session_is_closed_to_keep_another_pool_warm() -> None:
    slots = slots_of(4)
    red = FakePoolMember(slots, 4, idle_since=trio.current_time() - 1e6)
    blue = FakePoolMember(slots, warms=1)
    slots.want_warm(blue)
    assert (red.evicted, blue.opened) == (0, 0)


def test_no_session_is_closed_while_no_handshake_may_begin() -> None:
    slots = Slots(1)
    red = FakePoolMember(slots, 1, idle_since=trio.current_time())
    slots.gate.wait_until(trio.current_time() + 1)
    blue = wanting(slots)
    assert (red.evicted, blue.opened) == (0, 0)


# Returning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "other", "waits_for", "holder_waits_for", "yields"),
    [
        (3, 1, 0.0, None, True),  # the pools get more even
        (3, 1, None, None, False),  # nobody waits
        (2, 1, 9.0, None, False),  # the pools would only swap
        (1, 0, 0.1, None, False),  # a pool without a slot waits
        (1, 0, 0.3, None, True),  # for a quarter of a second,
        (1, 0, 0.3, 0.4, False),  # unless the holder's own requests have waited longer
        (1, 0, 0.3, 0.2, True),
        (2, 0, 0.0, None, True),
    ],
)
def test_a_returned_session_is_closed_if_another_pool_starves(
    holder: int, other: int, waits_for: float | None, holder_waits_for: float | None, yields: bool
) -> None:
    slots = slots_of(holder + other)
    now = trio.current_time()
    red = FakePoolMember(slots, holder, waits=holder_waits_for is not None, since=now - (holder_waits_for or 0.0))
    blue = FakePoolMember(slots, other, waits=waits_for is not None, since=now - (waits_for or 0.0))
    for member in (red, blue):
        slots.want(member)

    assert slots.should_yield(red) is yields
    assert not slots.should_yield(blue)


def test_a_session_is_kept_while_no_handshake_may_begin() -> None:
    """To close the session would help no pool."""
    slots = Slots(4)
    red = FakePoolMember(slots, 4)
    wanting(slots).since -= 9
    assert slots.should_yield(red)
    slots.gate.wait_until(trio.current_time() + 1)
    assert not slots.should_yield(red)


def test_a_session_yields_to_a_poorer_pool_although_a_slot_is_reserved() -> None:
    slots = slots_of(8)
    lose_last(slots, 1)
    rich, poor = FakePoolMember(slots, 6), FakePoolMember(slots, 1, waits=1)
    slots.want(poor)
    assert poor.opened == 0

    assert slots.should_yield(rich)
    slots.release(rich)

    assert (rich.held, poor.held) == (5, 2)


def test_sessions_beyond_a_lowered_limit_are_closed_when_returned() -> None:
    slots = slots_of(4)
    red = FakePoolMember(slots, 4)

    slots.limit = 3

    assert slots.should_yield(red)
    slots.release(red)
    assert not slots.should_yield(red)


def test_a_slot_that_nobody_waits_for_stays_free() -> None:
    slots = slots_of(1)
    red, blue = FakePoolMember(slots, 1), FakePoolMember(slots)

    slots.release(red)

    assert (red.held, blue.held, slots.used) == (0, 0, 0)


def test_a_pool_that_loses_its_last_slot_moves_to_the_first_queue() -> None:
    slots = slots_of(2)
    red, green = FakePoolMember(slots, 1, waits=1), FakePoolMember(slots, 1, waits=1)
    for member in (red, green):
        slots.want(member)

    slots.release(green)

    assert (red.opened, green.opened) == (0, 1)


# Abandoned sessions ------------------------------------------------------------------------------------------------


class FakeSession:
    """The part of a busy session that Slots uses."""

    def __init__(self) -> None:
        self.is_closed = False
        self.is_abandoned = True

    def close(self) -> None:
        self.is_closed = True


def test_one_abandoned_session_is_closed_for_each_pool_that_waits() -> None:
    slots = slots_of(3)
    red = FakePoolMember(slots, 3)
    sessions = [FakeSession() for _ in range(3)]
    slots.abandoned.update(dict.fromkeys(sessions, red))

    blue = wanting(slots)
    wanting(slots)
    for _ in range(5):
        slots.serve()
    assert [session.is_closed for session in sessions] == [False, True, True]

    slots.returned(sessions[2])
    slots.release(red)
    assert blue.opened == 1
    assert not sessions[0].is_closed


def test_an_idle_session_is_closed_rather_than_an_abandoned_one() -> None:
    slots = slots_of(2)
    red, session = FakePoolMember(slots, 2, idle_since=trio.current_time()), FakeSession()
    slots.abandoned[session] = red
    wanting(slots)
    assert (red.evicted, session.is_closed) == (1, False)


def test_clients_that_disconnected_are_looked_for_now_and_then(clock: Clock) -> None:
    slots = slots_of(1)
    red = FakePoolMember(slots, 1)
    wanting(slots)
    for _ in range(10):
        slots.serve()
    assert red.disconnected == 1
    clock.now += 0.1
    slots.serve()
    assert red.disconnected == 2


# The ceiling -------------------------------------------------------------------------------------------------------


def test_sessions_beyond_a_ceiling_are_closed_when_returned(clock: Clock) -> None:
    slots = slots_of(64)
    red = FakePoolMember(slots, 5)
    for _ in range(2):
        slots.ceiling.refused(4, clock.now, clock.now + 0.1)
        clock.now += 0.2
    assert slots.should_yield(red)
    slots.release(red)
    assert not slots.should_yield(red)
    assert not slots.has_room()


# Cost --------------------------------------------------------------------------------------------------------------


def cost_of_a_request(pools: int, waiting: int) -> int:
    """Return how often Slots reads pools while a session is returned and wanted again."""
    slots = slots_of(8)
    members = [FakePoolMember(slots) for _ in range(pools)]
    busy = FakePoolMember(slots, 8)
    for member in members[:waiting]:
        member.waits = 1
        slots.want(member)
    for member in (busy, *members):
        member.looked_at = 0

    slots.should_yield(busy)
    busy.waits = 1
    slots.want(busy)

    return sum(member.looked_at for member in (busy, *members))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nobody waits", "half of them wait", "all wait"])
def test_a_request_costs_the_same_however_many_pools_there_are(share: float) -> None:
    few, many = (cost_of_a_request(pools, int(pools * share)) for pools in (10, 1000))
    assert many <= few <= 30


def test_a_round_of_maintenance_looks_at_each_pool_a_few_times() -> None:
    slots = slots_of(8)
    FakePoolMember(slots, 8)
    members = [FakePoolMember(slots, warms=1) for _ in range(1000)]
    for member in members:
        slots.want_warm(member)
    for member in members:
        member.looked_at = 0

    for member in members:
        slots.want_warm(member)

    assert sum(member.looked_at for member in members) <= 2 * len(members)


# With real pools ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_two_credentials_share_one_limit(nursery: trio.Nursery) -> None:
    atlanta, slots = FakeKeyManager(), Slots(1)
    red, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, observer = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)

    blue.give_back(await lease(blue))
    assert repr(blue) == "<Pool atlanta as blue: idle=1 busy=0 opening=0 waiting=0>"

    await lease(red)
    assert repr(red) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=0 opening=0 waiting=0>"
    assert repr(slots) == "<Slots 1 of 1>"
    assert observer.closed == {"yielded": 1}
    assert [connection.credential for connection in atlanta.open_connections] == ["red"]


@in_virtual_time
async def test_a_slot_that_is_freed_goes_to_the_other_pool(nursery: trio.Nursery) -> None:
    atlanta, slots = FakeKeyManager(), Slots(1)
    red, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, _ = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)
    session = await lease(red)
    got = []

    async def client() -> None:
        got.append(await use(blue, "key-1"))

    nursery.start_soon(client)
    await wait_all_tasks_blocked()
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=0 opening=0 waiting=1>"

    atlanta.hang_up()
    session.close()
    red.give_back(session)
    await trio.sleep(1)

    assert got == ["key-1"]
    assert atlanta.executed == [("blue", "key-1")]


@in_virtual_time
async def test_a_slot_that_its_pool_does_not_use_goes_to_a_waiting_pool(nursery: trio.Nursery) -> None:
    """Not at once, since the pools would only swap, but after a second."""
    atlanta, slots = FakeKeyManager(), Slots(3)
    red, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, _ = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)
    await lease(blue)
    await lease(red)
    red.give_back(await lease(red))
    nursery.start_soon(maintain_pools, [red, blue], 3.0)
    nursery.start_soon(lease, blue)

    await trio.sleep(0.9)
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=1 opening=0 waiting=1>"
    await trio.sleep(0.5)
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=2 opening=0 waiting=0>"
    assert repr(red) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"


@in_virtual_time
async def test_sessions_kept_warm_take_no_slot_from_each_other(nursery: trio.Nursery) -> None:
    atlanta, slots = FakeKeyManager(), Slots(2)
    settings = SETTINGS.model_copy(update={"min_idle": 2})
    pools = [
        make_pool(atlanta, nursery.start_soon, settings, credential=credential, slots=slots)[0]
        for credential in ("red", "blue", "green")
    ]

    nursery.start_soon(maintain_pools, pools, 3.0)
    await trio.sleep(60)

    assert len(atlanta.attempts) == 2
    assert repr(slots) == "<Slots 2 of 2>"


@in_virtual_time
async def test_a_refused_credential_costs_no_other_its_sessions(nursery: trio.Nursery) -> None:
    """Clients of the refused credential ask again and again; it may try in one slot, once in a pause."""
    atlanta, slots = FakeKeyManager(operation_cost=0.05), Slots(4)
    red, red_observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, observer = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)
    atlanta.refused.add("blue")

    async def client() -> None:
        while True:
            await use(red, "key-1")

    async def unwelcome() -> None:
        while True:
            await trio.sleep(0.1)
            with pytest.raises(Exception, match="refused"):
                await use(blue, "key-1")

    for _ in range(20):
        nursery.start_soon(client)
        nursery.start_soon(unwelcome)
    nursery.start_soon(maintain_pools, [red, blue], 3.0)
    await trio.sleep(60)

    assert len(atlanta.executed) > 0.75 * 4 * 60 / 0.05
    assert red_observer.opened < 60 / 0.25
    assert observer.opened == 0


@in_virtual_time
async def test_with_one_slot_too_few_handshakes_are_spread_evenly(nursery: trio.Nursery) -> None:
    """Eight identities send a request a second each, in any order, with seven slots."""
    atlanta, slots = FakeKeyManager(), Slots(7)
    settings = SETTINGS.model_copy(update={"min_idle": 1})
    made = [
        make_pool(atlanta, nursery.start_soon, settings, credential=f"id{number}", slots=slots) for number in range(8)
    ]
    nursery.start_soon(maintain_pools, [pool for pool, _ in made], 3.0)
    await trio.sleep(2)
    before = [observer.opened for _, observer in made]
    order = random.Random(1)

    for _ in range(100):
        for number in order.sample(range(8), 8):
            await use(made[number][0], "key-1")
            await trio.sleep(0.125)

    handshakes = [observer.opened - count for (_, observer), count in zip(made, before, strict=True)]
    assert max(handshakes) <= 1.5 * sum(handshakes) / 8
    assert min(handshakes) >= 0.5 * sum(handshakes) / 8


@in_virtual_time
async def test_unused_warm_sessions_make_room_for_a_busy_identity(nursery: trio.Nursery) -> None:
    """Validation keeps the sessions open, but is no use by a client."""
    atlanta, slots = FakeKeyManager(operation_cost=1.0), Slots(16)
    settings = SETTINGS.model_copy(update={"min_idle": 1})
    pools = [
        make_pool(atlanta, nursery.start_soon, settings, credential=f"id{number}", slots=slots)[0]
        for number in range(20)
    ]
    nursery.start_soon(maintain_pools, pools, 3.0)
    await trio.sleep(120)
    assert slots.used == 16
    busy = next(pool for pool in pools if slots.held(pool))

    async def client() -> None:
        while True:
            await use(busy, "key-1")

    for _ in range(30):
        nursery.start_soon(client)
    await trio.sleep(60)

    assert slots.held(busy) == 8
    assert slots.used == 16


@in_virtual_time
async def test_a_refused_credential_keeps_no_slot_from_others_for_long(nursery: trio.Nursery) -> None:
    atlanta, slots = FakeKeyManager(), Slots(2)
    red, blue = (make_pool(atlanta, nursery.start_soon, credential=name, slots=slots)[0] for name in ("red", "blue"))
    atlanta.refused.add("blue")
    nursery.start_soon(maintain_pools, [red, blue], 3.0)
    with pytest.raises(BackendError):
        await use(blue, "key-1")
    await trio.sleep(5)

    with trio.fail_after(0.5):
        for session in [await lease(red), await lease(red)]:
            red.give_back(session)


class Load(NamedTuple):
    """A minute of load: slots, clients with each credential, and the pause of each client between requests."""

    slots: int
    clients: dict[str, int]
    think: float
    handshakes: int  # at the most
    longest_wait: float  # in seconds, at the most


MINUTES = {
    "two saturated pools": Load(4, {"red": 10, "blue": 10}, 0.0, 8, 1.0),
    "a big one and a small one, saturated": Load(4, {"red": 30, "blue": 3}, 0.0, 8, 2.0),
    "an odd number of slots": Load(3, {"red": 10, "blue": 10}, 0.0, 8, 1.5),
    "two pools that need a little more than there is": Load(4, {"red": 3, "blue": 3}, 0.02, 8, 0.5),
    "a saturated one, and one with pauses": Load(4, {"red": 10, "blue": 1}, 0.02, 8, 0.5),
    "a busy one, and one with long pauses": Load(4, {"red": 10, "blue": 1}, 0.2, 30, 0.5),
    # With fewer slots than pools sessions move all the time, but at a bounded rate.
    "one slot for two": Load(1, {"red": 5, "blue": 5}, 0.0, 480, 2.0),
    "two slots for three": Load(2, {"red": 5, "blue": 5, "green": 1}, 0.0, 480, 2.0),
}


@pytest.mark.parametrize("load", MINUTES.values(), ids=MINUTES.keys())
@in_virtual_time
async def test_pools_share_slots_with_few_handshakes_and_none_starves(nursery: trio.Nursery, load: Load) -> None:
    atlanta, slots = FakeKeyManager(operation_cost=0.1), Slots(load.slots)
    settings = SETTINGS.model_copy(update={"min_idle": 1})
    pools = {
        credential: make_pool(atlanta, nursery.start_soon, settings, credential=credential, slots=slots)[0]
        for credential in load.clients
    }
    longest: dict[str, float] = dict.fromkeys(load.clients, 0.0)
    most = 0
    thinking = random.Random(1)

    async def client(credential: str) -> None:
        nonlocal most
        while True:
            await trio.sleep(thinking.expovariate(1 / load.think) if load.think else 0)
            began = trio.current_time()
            await use(pools[credential], credential)
            longest[credential] = max(longest[credential], trio.current_time() - began)
            most = max(most, len(atlanta.open_connections))

    nursery.start_soon(maintain_pools, list(pools.values()), 3.0)
    for credential, number in load.clients.items():
        for _ in range(number):
            nursery.start_soon(client, credential)
    await trio.sleep(60)

    assert len(atlanta.attempts) <= load.handshakes
    assert max(longest.values()) <= load.longest_wait
    assert {credential for credential, _name in atlanta.executed} == set(load.clients)
    assert most == slots.used == load.slots
