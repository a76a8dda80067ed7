"""Tests of the fleet: a name with several addresses becomes several backends, which follow its addresses."""

from collections.abc import Callable, Sequence

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture
from structlog.typing import EventDict

from gateway.config import Address, Addresses
from gateway.upstream.backend import Backend
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.fleet import ConfiguredBackend, Fleet
from gateway.upstream.session import SessionState
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import FakeKeyManager, in_virtual_time, lease, make_pool
from tests.kit.fake_names import Names

KMS = Address("kms.example.com", 5696)


def build(name: str, address: Address) -> Backend:
    return Backend(name, Slots(1), {}, endpoint=Endpoint(address))


def configured_as(addresses: Addresses = "auto", *hosts: str) -> ConfiguredBackend:
    """Return a backend that is configured by a name, which resolves to these hosts."""
    configured = ConfiguredBackend("kms", KMS, build, addresses=addresses)
    if hosts:
        configured.update(hosts)
    return configured


def hosts_of(configured: ConfiguredBackend) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each backend, by its name."""
    return {backend.name: backend.endpoint.hosts for backend in configured.backends.values()}


def names(backends: Sequence[Backend]) -> list[str]:
    return [backend.name for backend in backends]


class TestMember:
    def test_one_address_is_one_backend_under_its_own_name(self) -> None:
        configured = configured_as()
        assert configured.update(["192.0.2.1"]) == ([], [])
        assert names(list(configured.backends.values())) == ["kms"]

    def test_several_addresses_are_several_backends(self) -> None:
        configured = configured_as()
        added, removed = configured.update(["192.0.2.1", "192.0.2.2"])
        assert names(added) == ["kms/1", "kms/2"]
        assert names(removed) == ["kms"]

    def test_a_kept_address_keeps_its_backend_and_a_new_one_reuses_a_name(self) -> None:
        configured = configured_as()
        configured.update(["192.0.2.1", "192.0.2.2", "192.0.2.3"])
        stays = configured.backends["192.0.2.3"]
        added, removed = configured.update(["192.0.2.3", "192.0.2.4"])
        assert configured.backends["192.0.2.3"] is stays
        assert names(added) == ["kms/1"]
        assert names(removed) == ["kms/1", "kms/2"]

    def test_a_backend_remains_when_addresses_are_added_and_removed(self) -> None:
        configured = configured_as()
        configured.update(["192.0.2.1"])
        (first,) = configured.backends.values()
        added, removed = configured.update(["192.0.2.1", "192.0.2.2"])
        assert (names(added), removed) == (["kms/1"], [])
        assert configured.backends["192.0.2.1"] is first
        assert hosts_of(configured) == {"kms": ("192.0.2.1",), "kms/1": ("192.0.2.2",)}
        assert (names(configured.update(["192.0.2.2"])[1]), names(list(configured.backends.values()))) == (
            ["kms"],
            ["kms/1"],
        )
        assert added[0].stable_id == "kms/192.0.2.2"

    def test_a_single_address_that_changes_keeps_its_backend(self) -> None:
        configured = configured_as()
        configured.update(["192.0.2.1"])
        (first,) = configured.backends.values()
        assert configured.update(["192.0.2.2"]) == ([], [])
        assert configured.backends == {"192.0.2.2": first}
        assert first.endpoint.hosts == ("192.0.2.2",)
        assert first.stable_id == "kms/192.0.2.2"

    def test_names_stay_few_however_often_addresses_change(self) -> None:
        configured = configured_as()
        seen: set[str] = set()
        for number in range(100):
            configured.update([f"192.0.2.{number}", f"192.0.2.{number + 1}"])
            seen |= {backend.name for backend in configured.backends.values()}
        assert seen <= {"kms/1", "kms/2", "kms/3"}

    @pytest.mark.parametrize(("host", "by_name"), [("192.0.2.1", False), ("::1", False), ("kms.example.com", True)])
    def test_only_names_are_looked_up(self, host: str, by_name: bool) -> None:
        assert ConfiguredBackend("kms", Address(host, 5696), build, addresses="auto").is_by_name is by_name


class TestOneKeyManagerOrSeveral:
    """The setting `addresses`: the number of key managers that the addresses of a name stand for."""

    def test_one_ipv4_and_one_ipv6_address_are_one_key_manager(self) -> None:
        configured = configured_as()
        (backend,) = configured.backends.values()
        assert configured.update(["2001:db8::1", "192.0.2.1"]) == ([], [])
        assert list(configured.backends.values()) == [backend]
        assert backend.endpoint.hosts == (
            "2001:db8::1",
            "192.0.2.1",
        )  # the resolver's order is the order of the attempts
        assert backend.stable_id == "kms/192.0.2.1"  # whatever the order, and without IPv6, too

    def test_one_backend_remains_while_its_second_address_changes(self) -> None:
        configured = configured_as("auto", "192.0.2.1")
        (backend,) = configured.backends.values()
        for hosts in (["192.0.2.1", "2001:db8::1"], ["2001:db8::2", "192.0.2.1"], ["192.0.2.1"], ["192.0.2.2"]):
            assert configured.update(hosts) == ([], [])
            assert hosts_of(configured) == {"kms": tuple(hosts)}
        assert list(configured.backends.values()) == [backend]

    def test_a_third_address_makes_each_a_key_manager(self) -> None:
        configured = configured_as("auto", "2001:db8::1", "192.0.2.1")
        added, removed = configured.update(["2001:db8::1", "192.0.2.1", "192.0.2.2"])
        assert (names(added), removed) == (["kms/1", "kms/2"], [])
        assert hosts_of(configured) == {"kms": ("192.0.2.1",), "kms/1": ("192.0.2.2",), "kms/2": ("2001:db8::1",)}

    def test_two_backends_that_become_one_leave_the_first(self) -> None:
        configured = configured_as("auto", "192.0.2.1", "192.0.2.2", "2001:db8::1")
        added, removed = configured.update(["192.0.2.2", "2001:db8::1"])
        assert (added, names(removed)) == ([], ["kms/1", "kms/3"])
        assert hosts_of(configured) == {"kms/2": ("192.0.2.2", "2001:db8::1")}

    def test_each_address_may_be_a_key_manager_of_its_own(self) -> None:
        assert hosts_of(configured_as("each", "192.0.2.1", "2001:db8::1")) == {
            "kms/1": ("192.0.2.1",),
            "kms/2": ("2001:db8::1",),
        }

    def test_all_addresses_may_be_one_key_manager(self) -> None:
        configured = configured_as("one")
        (backend,) = configured.backends.values()
        for hosts in (["192.0.2.3", "192.0.2.1"], ["192.0.2.4", "192.0.2.5", "2001:db8::1"], ["192.0.2.1"]):
            assert configured.update(hosts) == ([], [])
            assert hosts_of(configured) == {"kms": tuple(hosts)}
            assert backend.stable_id == "kms"  # so that marks outlive every address

    @given(
        addresses=st.sampled_from(["auto", "one", "each"]),
        lookups=st.lists(
            st.lists(
                st.sampled_from([f"192.0.2.{number}" for number in range(4)] + ["2001:db8::1", "2001:db8::2"]),
                min_size=1,
                unique=True,
            ),
            max_size=8,
        ),
    )
    def test_every_address_has_one_backend_and_names_are_unique(
        self, addresses: Addresses, lookups: list[list[str]]
    ) -> None:
        configured = configured_as(addresses)
        there = set(configured.backends.values())
        for hosts in lookups:
            added, removed = configured.update(hosts)
            there = there.difference(removed).union(added)
            now = list(configured.backends.values())
            assert set(now) == there
            assert len({one.name for one in now}) == len({one.stable_id for one in now}) == len(now)
            assert sorted(host for one in now for host in one.endpoint.hosts) == sorted(hosts)


# A name that is looked up ---------------------------------------------------------------------------------------------


async def untended(_backend: Backend) -> None:
    await trio.sleep_forever()


class Running:
    """A running fleet with a fake name server and a captured log."""

    def __init__(self, nursery: trio.Nursery, *members: ConfiguredBackend, interval: float = 30.0) -> None:
        self.names = Names(["192.0.2.1"])
        trio.socket.set_custom_hostname_resolver(self.names)
        self._log = LogCapture()
        fleet = Fleet(
            members,
            untended,
            lambda _backends: None,
            structlog.wrap_logger(None, processors=[self._log]),
        )
        nursery.start_soon(fleet.run, interval)

    @property
    def asked_at(self) -> list[float]:
        """The times of the lookups."""
        return [at for at, _name in self.names.asked]

    @property
    def logged(self) -> list[EventDict]:
        """The captured log lines."""
        return list(self._log.entries)


@in_virtual_time
async def test_a_name_is_looked_up_soon_after_a_connection_has_failed(nursery: trio.Nursery) -> None:
    configured = configured_as()
    running = Running(nursery, configured)
    await trio.sleep(10)
    (backend,) = configured.backends.values()
    running.names.hosts = ["192.0.2.2"]

    backend.endpoint.connect_failed()
    await trio.sleep(0.5)

    assert running.asked_at == [0, 10]
    assert backend.endpoint.hosts == ("192.0.2.2",)
    for _ in range(100):  # while connections keep failing, once a second is enough
        backend.endpoint.connect_failed()
        await trio.sleep(0.1)
    assert len(running.asked_at) <= 12
    await trio.sleep(300)
    assert len(running.asked_at) <= 23


@in_virtual_time
async def test_a_slow_lookup_delays_no_other_name(nursery: trio.Nursery) -> None:
    slow, quick = (
        ConfiguredBackend(name, Address(f"{name}.example.com", 5696), build, addresses="auto")
        for name in ("slow", "quick")
    )
    running = Running(nursery, slow, quick)
    running.names.delays["slow.example.com"] = 1000.0

    await trio.sleep(1)

    assert quick.hosts == {"192.0.2.1"}
    assert slow.hosts == set()


@in_virtual_time
async def test_a_failed_lookup_keeps_the_addresses_and_is_logged_once(
    nursery: trio.Nursery,
) -> None:
    configured = configured_as()
    running = Running(nursery, configured)
    await trio.sleep(1)
    running.names.hosts = None
    await trio.sleep(600)

    assert hosts_of(configured) == {"kms": ("192.0.2.1",)}
    (failed,) = running.logged
    assert (failed["event"], failed["backend"]) == ("can't resolve a name", "kms")
    assert failed["known_addresses"] == ["192.0.2.1"]
    running.names.hosts = ["192.0.2.2"]
    await trio.sleep(60)
    assert [(entry["event"], entry["addresses"]) for entry in running.logged[1:]] == [
        ("name resolved again", ["192.0.2.2"]),
        ("addresses changed", ["192.0.2.2"]),
    ]


@in_virtual_time
async def test_a_name_without_an_address_changes_nothing(nursery: trio.Nursery) -> None:
    configured = configured_as()
    running = Running(nursery, configured)
    await trio.sleep(1)
    running.names.hosts = []
    await trio.sleep(60)
    assert hosts_of(configured) == {"kms": ("192.0.2.1",)}


@in_virtual_time
async def test_sessions_to_a_removed_address_are_closed(nursery: trio.Nursery) -> None:
    """The name moves to a new address, while the old key manager still answers: perhaps it was the master."""
    key_manager = FakeKeyManager("kms")

    def build_with_pool(name: str, address: Address) -> Backend:
        slots, endpoint = Slots(4), Endpoint(address)
        pool, _observer = make_pool(key_manager, nursery.start_soon, slots=slots, endpoint=endpoint)
        return Backend(name, slots, {"red": pool}, endpoint=endpoint)

    configured = ConfiguredBackend("kms", KMS, build_with_pool, addresses="auto")
    (backend,) = configured.backends.values()
    pool = backend.pools["red"]
    configured.update(["192.0.2.1"])
    key_manager.host = "192.0.2.1"
    idle, lent = await lease(pool), await lease(pool)
    pool.give_back(idle)

    key_manager.host = "192.0.2.2"
    configured.update(["192.0.2.2"])

    assert idle.state is SessionState.CLOSED
    assert pool.take() is None
    assert lent.is_idle  # a request that is under way is left to finish
    pool.give_back(lent)
    assert lent.state is SessionState.CLOSED
    assert (await lease(pool)).peer == "192.0.2.2"
    assert len(key_manager.attempts) == 3


@in_virtual_time
async def test_sessions_stay_if_only_the_order_of_the_addresses_changes(nursery: trio.Nursery) -> None:
    key_manager = FakeKeyManager("kms")
    slots, endpoint = Slots(4), Endpoint(KMS)
    pool, _observer = make_pool(key_manager, nursery.start_soon, slots=slots, endpoint=endpoint)
    configured = ConfiguredBackend(
        "kms", KMS, lambda name, _address: Backend(name, slots, {"red": pool}, endpoint=endpoint), addresses="one"
    )
    configured.update(["192.0.2.1", "192.0.2.2"])
    key_manager.host = "192.0.2.1"
    session = await lease(pool)
    pool.give_back(session)

    for hosts in (["192.0.2.2", "192.0.2.1"], ["192.0.2.3", "192.0.2.1"]):
        configured.update(hosts)
        assert pool.take() is session
        pool.give_back(session)


@in_virtual_time
async def test_backends_are_added_and_removed_with_their_addresses() -> None:
    resolver = Names()
    trio.socket.set_custom_hostname_resolver(resolver)
    maintained: list[Backend] = []
    told: list[list[str]] = []

    async def maintain(backend: Backend) -> None:
        maintained.append(backend)
        try:
            await trio.sleep_forever()
        finally:
            maintained.remove(backend)

    changed: Callable[[list[Backend]], None] = lambda backends: told.append(names(backends))  # noqa: E731
    configured = configured_as()
    fleet = Fleet([configured], maintain, changed, structlog.wrap_logger(None, processors=[LogCapture()]))
    async with trio.open_nursery() as nursery:
        resolver.hosts = ["192.0.2.1"]
        nursery.start_soon(fleet.run, 30.0)
        await trio.sleep(1)
        assert names(maintained) == ["kms"]
        resolver.hosts = ["192.0.2.1", "192.0.2.2"]
        await trio.sleep(30)
        assert sorted(names(maintained)) == ["kms", "kms/1"]
        resolver.hosts = None
        await trio.sleep(300)
        assert sorted(names(maintained)) == ["kms", "kms/1"]  # while lookups fail, the backends stay as they are
        resolver.hosts = ["192.0.2.2", "192.0.2.3"]
        await trio.sleep(30)
        assert sorted(names(maintained)) == ["kms/1", "kms/2"]
        assert told == [["kms", "kms/1"], ["kms/1", "kms/2"]]
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_replaced_entries_are_maintained_and_removed_ones_no_more(nursery: trio.Nursery) -> None:
    resolver = Names(["192.0.2.1"])
    trio.socket.set_custom_hostname_resolver(resolver)
    maintained: list[Backend] = []

    async def maintain(backend: Backend) -> None:
        maintained.append(backend)
        try:
            await trio.sleep_forever()
        finally:
            maintained.remove(backend)

    told: list[list[str]] = []
    changed: Callable[[list[Backend]], None] = lambda backends: told.append(names(backends))  # noqa: E731
    by_name = configured_as()
    one, two = (ConfiguredBackend(name, Address("192.0.2.9", 5696), build, addresses="auto") for name in ("one", "two"))
    fleet = Fleet([by_name, one], maintain, changed, structlog.wrap_logger(None, processors=[LogCapture()]))
    nursery.start_soon(fleet.run, 30.0)
    await trio.sleep(1)
    fleet.replace([two, one])
    await trio.sleep(1)
    assert told == [["two", "one"]]
    assert sorted(names(maintained)) == ["one", "two"]
    asked = len(resolver.asked)
    await trio.sleep(100)
    assert len(resolver.asked) == asked  # the removed name is looked up no more
