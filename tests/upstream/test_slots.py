"""A backend's places, and what makes one move from a pool to another: each move costs a handshake."""

import random
from typing import NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.upstream.keeper import keep_warm
from gateway.upstream.slots import Slots
from tests.upstream.fakes import SETTINGS, FakeKeyManager, in_virtual_time, lease, make_pool, use

NOW = 1000.0
NEVER = float("inf")


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Outside of trio, time stands still."""
    if "nursery" not in request.fixturenames:
        monkeypatch.setattr(trio, "current_time", lambda: NOW)


class FakeTenant:
    """A pool, as Slots see it: it opens one session when it may, for the waiter that it has."""

    def __init__(self, slots: Slots, *, holds: int = 0, idle: tuple[float, ...] = (), waits: float = NEVER) -> None:
        self.slots = slots
        self.idle = list(idle)
        self.waiting_since = waits
        self.is_failing = False
        self.opened = 0
        slots.add(self)
        slots._held[self] = holds
        slots.used += holds

    @property
    def held(self) -> int:
        return self.slots._held[self]

    def close_oldest_idle(self, since: float) -> bool:
        if not self.idle or self.idle[0] > since:
            return False
        self.idle.pop(0)
        return True

    def open_if_wanted(self) -> None:
        if self.waiting_since < NEVER and self.slots.take(self):
            self.waiting_since = NEVER
            self.opened += 1


# Taking ------------------------------------------------------------------------------------------------------------


def test_there_are_so_many_places_and_no_more() -> None:
    slots = Slots(2)
    red, blue = FakeTenant(slots), FakeTenant(slots)

    assert [slots.take(red), slots.take(blue), slots.take(red), slots.take(blue)] == [True, True, False, False]
    assert repr(slots) == "<Slots 2 of 2>"


def test_who_has_none_gets_the_place_of_an_idle_session_at_once() -> None:
    slots = Slots(2)
    red, blue = FakeTenant(slots, holds=2, idle=(NOW,)), FakeTenant(slots)

    assert slots.take(blue)

    assert (red.held, blue.held, red.idle) == (1, 1, [])


def test_it_is_taken_from_who_holds_most() -> None:
    slots = Slots(6)
    red = FakeTenant(slots, holds=2, idle=(NOW,))
    green = FakeTenant(slots, holds=3, idle=(NOW,))
    taker = FakeTenant(slots, holds=1)

    assert slots.take(taker)

    assert (red.held, green.held, taker.held) == (2, 2, 2)


def test_or_of_the_next_where_that_one_uses_all_it_holds() -> None:
    slots = Slots(6)
    red = FakeTenant(slots, holds=2, idle=(NOW,))
    green = FakeTenant(slots, holds=4)
    blue = FakeTenant(slots)

    assert slots.take(blue)

    assert (red.held, green.held, blue.held) == (1, 4, 1)


@pytest.mark.parametrize(
    ("taker", "holder", "idle_for", "moves"),
    [
        (0, 1, 0.0, True),  # it has none
        (1, 3, 0.0, True),  # evens out
        (1, 2, 0.0, False),  # would only turn the tables
        (3, 1, 0.0, False),
        (3, 1, 0.9, False),
        (3, 1, 1.0, True),  # nobody has used it for a while
    ],
)
def test_an_idle_sessions_place_moves_where_that_is_worth_a_handshake(
    taker: int, holder: int, idle_for: float, moves: bool
) -> None:
    slots = Slots(taker + holder)
    red, blue = FakeTenant(slots, holds=holder, idle=(NOW - idle_for,)), FakeTenant(slots, holds=taker)

    assert slots.take(blue) is moves

    assert (red.held, blue.held) == (holder - moves, taker + moves)


# Giving back -------------------------------------------------------------------------------------------------------


def test_a_free_place_goes_to_who_has_fewest_and_then_to_who_has_waited_longest() -> None:
    slots = Slots(7)
    giver = FakeTenant(slots, holds=2)
    rich = FakeTenant(slots, holds=3, waits=NOW - 9)
    late = FakeTenant(slots, holds=1, waits=NOW - 1)
    early = FakeTenant(slots, holds=1, waits=NOW - 2)

    slots.give_back(giver)
    assert (rich.opened, late.opened, early.opened) == (0, 0, 1)
    slots.give_back(giver)
    assert (rich.opened, late.opened, early.opened) == (0, 1, 1)


def test_a_place_that_nobody_waits_for_stays_free() -> None:
    slots = Slots(1)
    red, blue = FakeTenant(slots, holds=1), FakeTenant(slots)

    slots.give_back(red)

    assert (red.held, blue.held, slots.used) == (0, 0, 0)


@pytest.mark.parametrize(
    ("holder", "other", "waits_for", "holder_waits_for", "failing", "owed"),
    [
        (3, 1, 0.0, None, False, True),  # evens out
        (3, 1, None, None, False, False),  # nobody waits
        (2, 1, 9.0, None, False, False),  # would only turn the tables
        (1, 0, 0.1, None, False, False),  # it has none, and should be patient,
        (1, 0, 0.3, None, False, True),  # for so long,
        (1, 0, 0.3, 0.4, False, False),  # unless the holder's own have waited longer
        (1, 0, 0.3, 0.2, False, True),
        (3, 0, 0.1, None, True, False),  # who could not open one last time costs others no session,
        (3, 0, 0.3, None, True, True),  # or not often
    ],
)
def test_a_session_that_comes_back_makes_place_where_it_is_owed(
    holder: int, other: int, waits_for: float | None, holder_waits_for: float | None, failing: bool, owed: bool
) -> None:
    slots = Slots(holder + other)
    red = FakeTenant(slots, holds=holder, waits=NEVER if holder_waits_for is None else NOW - holder_waits_for)
    blue = FakeTenant(slots, holds=other, waits=NEVER if waits_for is None else NOW - waits_for)
    blue.is_failing = failing

    assert slots.owed_by(red) is owed


def test_nothing_is_owed_where_there_is_room() -> None:
    slots = Slots(4)
    red = FakeTenant(slots, holds=3)
    FakeTenant(slots, waits=NOW - 9)

    assert not slots.owed_by(red)


def test_a_lower_limit_is_owed_too() -> None:
    slots = Slots(4)
    red = FakeTenant(slots, holds=4)

    slots.limit = 3

    assert slots.owed_by(red)
    slots.give_back(red)
    assert not slots.owed_by(red)


# With real pools ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_two_credentials_share_one_bound(nursery: trio.Nursery) -> None:
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
async def test_a_place_that_is_freed_wakes_the_other_pool(nursery: trio.Nursery) -> None:
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
async def test_a_place_that_its_pool_does_not_use_goes_to_who_waits(nursery: trio.Nursery) -> None:
    """Not at once, since that would only turn the tables; but after a while."""
    atlanta, slots = FakeKeyManager(), Slots(3)
    red, _ = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, _ = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)
    await lease(blue)
    await lease(red)
    red.give_back(await lease(red))
    nursery.start_soon(keep_warm, [red, blue], 3.0)
    nursery.start_soon(lease, blue)

    await trio.sleep(0.9)
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=1 opening=0 waiting=1>"
    await trio.sleep(0.5)
    assert repr(blue) == "<Pool atlanta as blue: idle=0 busy=2 opening=0 waiting=0>"
    assert repr(red) == "<Pool atlanta as red: idle=0 busy=1 opening=0 waiting=0>"


@in_virtual_time
async def test_sessions_kept_warm_take_no_place_from_each_other(nursery: trio.Nursery) -> None:
    atlanta, slots = FakeKeyManager(), Slots(2)
    settings = SETTINGS._replace(min_idle=2)
    pools = [
        make_pool(atlanta, nursery.start_soon, settings, credential=credential, slots=slots)[0]
        for credential in ("red", "blue", "green")
    ]

    nursery.start_soon(keep_warm, pools, 3.0)
    await trio.sleep(60)

    assert len(atlanta.attempts) == 2
    assert repr(slots) == "<Slots 2 of 2>"


@in_virtual_time
async def test_a_credential_that_is_refused_does_not_cost_another_its_sessions(nursery: trio.Nursery) -> None:
    """Its clients ask again and again; each time, at the most every quarter of a second, it may try on one place."""
    atlanta, slots = FakeKeyManager(operation_cost=0.05), Slots(4)
    red, red_observer = make_pool(atlanta, nursery.start_soon, slots=slots)
    blue, observer = make_pool(atlanta, nursery.start_soon, credential="blue", slots=slots)
    atlanta.refused.add("blue")

    async def client() -> None:
        while True:
            await use(red, "key-1")

    async def unwelcome() -> None:
        while True:
            await trio.sleep(0.01)
            with pytest.raises(Exception, match="refused"):
                await use(blue, "key-1")

    for _ in range(20):
        nursery.start_soon(client)
        nursery.start_soon(unwelcome)
    nursery.start_soon(keep_warm, [red, blue], 3.0)
    await trio.sleep(60)

    assert len(atlanta.executed) > 0.75 * 4 * 60 / 0.05
    assert red_observer.opened < 60 / 0.25
    assert observer.opened == 0


class Load(NamedTuple):
    """A minute at a key manager: so many places, so many clients with each credential, who think for so long."""

    places: int
    clients: dict[str, int]
    think: float
    handshakes: int  # at the most
    longest_wait: float  # in seconds, at the most


MINUTES = {
    "two saturated pools": Load(4, {"red": 10, "blue": 10}, 0.0, 8, 1.0),
    "a big one and a small one, saturated": Load(4, {"red": 30, "blue": 3}, 0.0, 8, 2.0),
    "an odd number of places": Load(3, {"red": 10, "blue": 10}, 0.0, 8, 1.5),
    "two pools that need a little more than there is": Load(4, {"red": 3, "blue": 3}, 0.02, 8, 0.5),
    "a saturated one, and one with pauses": Load(4, {"red": 10, "blue": 1}, 0.02, 8, 0.5),
    "a busy one, and one with long pauses": Load(4, {"red": 10, "blue": 1}, 0.2, 30, 0.5),
    # With fewer places than pools there is no peace, but there is a measure.
    "one place for two": Load(1, {"red": 5, "blue": 5}, 0.0, 480, 2.0),
    "two places for three": Load(2, {"red": 5, "blue": 5, "green": 1}, 0.0, 480, 2.0),
}


@pytest.mark.parametrize("load", MINUTES.values(), ids=MINUTES.keys())
@in_virtual_time
async def test_pools_do_not_take_places_from_each_other_for_ever_and_none_goes_without(
    nursery: trio.Nursery, load: Load
) -> None:
    atlanta, slots = FakeKeyManager(operation_cost=0.1), Slots(load.places)
    settings = SETTINGS._replace(min_idle=1)
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

    nursery.start_soon(keep_warm, list(pools.values()), 3.0)
    for credential, number in load.clients.items():
        for _ in range(number):
            nursery.start_soon(client, credential)
    await trio.sleep(60)

    assert len(atlanta.attempts) <= load.handshakes
    assert max(longest.values()) <= load.longest_wait
    assert {credential for credential, _name in atlanta.executed} == set(load.clients)
    assert most == slots.used == load.places
