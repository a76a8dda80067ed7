"""The fleet: a name with several addresses becomes several backends, and keeps those that stay."""

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from gateway import log
from gateway.config import Address
from gateway.upstream.backend import Backend
from gateway.upstream.fleet import Fleet, Member
from gateway.upstream.slots import Slots
from tests.upstream.fakes import in_virtual_time


def build(name: str, _address: Address) -> Backend:
    return Backend(name, Slots(1), {})


def names(backends: Sequence[Backend]) -> list[str]:
    return [backend.name for backend in backends]


class TestMember:
    def test_one_address_is_one_backend_under_its_own_name(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        assert member.update(["192.0.2.1"]) == ([], [])
        assert names(list(member.backends.values())) == ["kms"]

    def test_several_addresses_are_several_backends(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        come, gone = member.update(["192.0.2.1", "192.0.2.2"])
        assert names(come) == ["kms/1", "kms/2"]
        assert names(gone) == ["kms"]

    def test_who_stays_keeps_its_backend_and_who_comes_takes_the_free_place(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        member.update(["192.0.2.1", "192.0.2.2", "192.0.2.3"])
        stays = member.backends["192.0.2.3"]
        come, gone = member.update(["192.0.2.3", "192.0.2.4"])
        assert member.backends["192.0.2.3"] is stays
        assert names(come) == ["kms/1"]
        assert names(gone) == ["kms/1", "kms/2"]

    def test_the_one_that_is_joined_by_others_stays_and_so_does_the_one_that_is_left(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        member.update(["192.0.2.1"])
        (first,) = member.backends.values()
        assert str(first.site.address) == "kms.example.com:5696"  # each session looks the name up
        come, gone = member.update(["192.0.2.1", "192.0.2.2"])
        assert (names(come), gone) == (["kms/1"], [])
        assert member.backends["192.0.2.1"] is first
        assert [(str(one.site.address), one.site.host) for one in (first, *come)] == [
            ("192.0.2.1:5696", "192.0.2.1"),
            ("192.0.2.2:5696", "192.0.2.2"),
        ]
        assert (names(member.update(["192.0.2.2"])[1]), names(list(member.backends.values()))) == (["kms"], ["kms/1"])
        assert (str(come[0].site.address), come[0].site.host) == ("kms.example.com:5696", "")
        assert come[0].known_as == "kms/192.0.2.2"

    def test_one_address_that_becomes_another_is_still_the_same_one(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        member.update(["192.0.2.1"])
        (first,) = member.backends.values()
        assert member.update(["192.0.2.2"]) == ([], [])
        assert member.backends == {"192.0.2.2": first}
        assert first.known_as == "kms/192.0.2.2"

    def test_names_stay_few_however_often_addresses_change(self) -> None:
        member = Member("kms", Address("kms.example.com", 5696), build)
        seen: set[str] = set()
        for number in range(100):
            member.update([f"192.0.2.{number}", f"192.0.2.{number + 1}"])
            seen |= {backend.name for backend in member.backends.values()}
        assert seen <= {"kms/1", "kms/2", "kms/3"}

    @pytest.mark.parametrize(("host", "by_name"), [("192.0.2.1", False), ("::1", False), ("kms.example.com", True)])
    def test_only_names_are_looked_up(self, host: str, by_name: bool) -> None:
        assert Member("kms", Address(host, 5696), build).is_by_name is by_name


class Names(trio.abc.HostnameResolver):
    """A name server whose answers the test decides; None is a failure."""

    def __init__(self) -> None:
        self.hosts: list[str] | None = []

    async def getaddrinfo(self, *arguments: Any) -> Any:
        if self.hosts is None:
            raise OSError("no answer from the name server")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, arguments[1])) for host in self.hosts]

    async def getnameinfo(self, *_arguments: Any) -> Any:
        raise NotImplementedError


@in_virtual_time
async def test_backends_come_and_go_with_their_addresses() -> None:
    resolver = Names()
    trio.socket.set_custom_hostname_resolver(resolver)
    tended: list[Backend] = []
    told: list[list[str]] = []

    async def tend(backend: Backend) -> None:
        tended.append(backend)
        try:
            await trio.sleep_forever()
        finally:
            tended.remove(backend)

    changed: Callable[[list[Backend]], None] = lambda backends: told.append(names(backends))  # noqa: E731
    member = Member("kms", Address("kms.example.com", 5696), build)
    fleet = Fleet([member], tend, changed, log.get("test"))
    async with trio.open_nursery() as nursery:
        resolver.hosts = ["192.0.2.1"]
        nursery.start_soon(fleet.run, 30.0)
        await trio.sleep(1)
        assert names(tended) == ["kms"]
        resolver.hosts = ["192.0.2.1", "192.0.2.2"]
        await trio.sleep(30)
        assert sorted(names(tended)) == ["kms", "kms/1"]
        resolver.hosts = None
        await trio.sleep(300)
        assert sorted(names(tended)) == ["kms", "kms/1"]  # while names can't be looked up, things stay as they are
        resolver.hosts = ["192.0.2.2", "192.0.2.3"]
        await trio.sleep(30)
        assert sorted(names(tended)) == ["kms/1", "kms/2"]
        assert told == [["kms", "kms/1"], ["kms/1", "kms/2"]]
        nursery.cancel_scope.cancel()
