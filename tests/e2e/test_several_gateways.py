"""Three gateways behind a TCP balancer, before key managers that replicate late; they share the marks' key only."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import pytest
import trio
from kmip_lab.keymanager.roles import Link, Member, Role, write_roles
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import activate, create_key, get_key, key_value

from gateway.errors import GatewayError
from gateway.kmip.messages import Response, ResponseItem
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.tls import client_context
from tests.kit.balancer import Balancer
from tests.kit.bound_requests import LOGIN, about, later, ticket_in, with_ticket
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
)

LAG: Final = 2.0  # s until the other masters have a change
PENDING: Final = 0.5  # s until an asynchronous operation is executed
MASTERS: Final = ("kms-1", "kms-2", "kms-3")
GATEWAYS: Final = 3
_numbers = itertools.count()
ASYNC: Final = """
[pool]
queue_timeout = 2.0
[health]
interval = 0.5
[replication]
mode = "async"
min_lookups_per_second = 20.0
"""


class Site:
    """Key managers, and the gateways before them, each with a control socket."""

    def __init__(
        self, certificates: Certificates, key_managers: list[KeyManagerProcess], gateways: list[Gateway]
    ) -> None:
        self.certificates = certificates
        self.key_managers = key_managers
        self.gateways = gateways

    def balancer(self, *, by_source: bool = False) -> Balancer:
        return Balancer([gateway.address for gateway in self.gateways], by_source=by_source)

    def total(self, family: str, **labels: str) -> float:
        return sum(gateway.total(family, **labels) for gateway in self.gateways)

    def command(self, gateway: int, *arguments: str) -> Any:
        """Run a command of kmip-gateway on a gateway's control socket; return its result."""
        path = control_socket(self.certificates, gateway)
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--socket", path, "--json"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def control_socket(certificates: Certificates, gateway: int) -> str:
    return str(certificates.path(f"control-{gateway}.sock"))


@contextmanager
def running_site(certificates: Certificates, lag: float) -> Iterator[Site]:
    cluster = certificates.path("cluster")
    cluster.mkdir()
    links = {name: Link(delay=lag) for name in MASTERS}
    write_roles(
        cluster,
        {
            name: Member(Role.MASTER, {other: link for other, link in links.items() if other != name})
            for name in MASTERS
        },
    )
    options = ("--pending-for", str(PENDING))
    with (
        running_key_manager_processes(certificates, MASTERS, *options, cluster=cluster) as key_managers,
        ExitStack() as stack,
    ):
        ports = [one.port for one in key_managers]
        gateways = [
            stack.enter_context(
                running_gateway(
                    certificates,
                    GatewaySettings(ports, extra=f'socket = "{control_socket(certificates, number)}"\n{ASYNC}'),
                )
            )
            for number in range(GATEWAYS)
        ]
        yield Site(certificates, key_managers, gateways)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(Certificates(tmp_path_factory.mktemp("site")), LAG) as site:
        yield site


class Caller:
    """A client with a new session for each request."""

    def __init__(self, site: Site, to: Balancer | Gateway, name: str = "alice") -> None:
        self._to = to
        self._context = client_context(*site.certificates.client(name), site.certificates.path("gateway_ca.pem"))

    async def ask(self, frame: bytes) -> Response:
        async with connect(self._to.address, self._context, server_name="localhost") as client:
            return await client.ask(frame)

    async def item(self, frame: bytes) -> ResponseItem:
        """Return the first item of the answer."""
        return (await self.ask(frame)).items[0]

    async def create(self) -> str:
        item = await self.item(create_key())
        assert item.status == ResultStatus.SUCCESS, item.message
        return item.unique_identifiers[0].decode()

    async def begin(self) -> bytes:
        """Begin an asynchronous Locate; return its correlation value."""
        item = await self.item(later((2, 1)))
        assert item.status == ResultStatus.OPERATION_PENDING, item.message
        return item.asynchronous_correlation_value or b""

    async def log_in(self) -> bytes:
        """Return a ticket."""
        return ticket_in(await self.ask(LOGIN))

    async def polled(self, value: bytes) -> ResponseItem:
        """Poll until the operation is no longer pending; return the last answer."""
        while True:
            item = await self.item(about(Operation.POLL, value, (2, 1)))
            if item.status != ResultStatus.OPERATION_PENDING:
                return item
            value = item.asynchronous_correlation_value or value
            await trio.sleep(0.1)


@asynccontextmanager
async def balanced(site: Site, *, by_source: bool = False) -> AsyncIterator[Balancer]:
    balancer = site.balancer(by_source=by_source)
    async with trio.open_nursery() as nursery:
        await nursery.start(balancer.run)
        yield balancer
        nursery.cancel_scope.cancel()


async def one_of_each(
    site: Site, to: Balancer | Gateway, get: Callable[[Caller], Awaitable[bytes]]
) -> dict[bytes, tuple[Caller, bytes]]:
    """Return a marked value of each key manager, and its client, by the part of the mark that names the key manager.

    Each value is another client's, since a client that has state on a key manager stays there for a while.
    """
    values: dict[bytes, tuple[Caller, bytes]] = {}
    with trio.fail_after(30):
        while len(values) < len(MASTERS):
            client = Caller(site, to, f"client-{next(_numbers)}")
            value = await get(client)
            assert value.startswith(b"kgw\x01")
            values[value[4:8]] = client, value  # docs/replication.md
    return values


async def test_polls_and_tickets_are_good_through_every_gateway(site: Site) -> None:
    async with balanced(site) as balancer:
        for client, value in (await one_of_each(site, balancer, Caller.begin)).values():
            item = await client.polled(value)
            assert (item.operation, item.status) == (Operation.LOCATE, ResultStatus.SUCCESS), item.message
            foreign = await Caller(site, balancer, "bob").polled(value)
            assert foreign.reason == ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE
        for client, ticket in (await one_of_each(site, balancer, Caller.log_in)).values():
            for _ in range(GATEWAYS):
                item = await client.item(with_ticket(ticket))
                assert (item.operation, item.status) == (Operation.LOCATE, ResultStatus.SUCCESS), item.message
        assert min(balancer.forwarded.values()) > 0
    for gateway in site.gateways:
        polls = partial(gateway.total, "kmip_gateway_requests_total", operation="Poll")
        assert await trio.to_thread.run_sync(polls) > 0


async def test_a_balancer_by_source_has_clients_read_their_writes(site: Site) -> None:
    """An Activate of a new key is not tried at other key managers: it needs the gateway that knows the Create."""
    async with balanced(site, by_source=True) as balancer:
        alice = Caller(site, balancer)
        for _ in range(6):
            uid = await alice.create()
            item = await alice.item(activate(uid))
            assert item.status == ResultStatus.SUCCESS, item.message
            assert len(key_value(await alice.ask(get_key(uid)))) == 32
        assert sorted(balancer.forwarded.values())[:-1] == [0, 0]


async def test_any_balancer_has_reads_find_new_keys_by_lookups(site: Site) -> None:
    lookups = partial(site.total, "kmip_gateway_fallback_lookups_total", result="found")
    before = await trio.to_thread.run_sync(lookups)
    async with balanced(site) as balancer:
        alice, bob = Caller(site, balancer), Caller(site, balancer, "bob")
        for _ in range(6):
            uid = await alice.create()
            first = key_value(await alice.ask(get_key(uid)))
            assert key_value(await bob.ask(get_key(uid))) == first
    assert await trio.to_thread.run_sync(lookups) > before


async def test_a_drained_backend_refuses_its_own_requests_until_enabled(site: Site) -> None:
    """The drain is the one gateway's: the other gateways go on with the key manager."""
    here, there = site.gateways[:2]
    values, tickets = await one_of_each(site, here, Caller.begin), await one_of_each(site, here, Caller.log_in)
    others = await one_of_each(site, there, Caller.begin)
    await trio.to_thread.run_sync(site.command, 0, "drain", "kms-1")
    try:
        told = {backend: await client.polled(value) for backend, (client, value) in values.items()}
        (drained,) = [backend for backend, item in told.items() if item.status != ResultStatus.SUCCESS]
        assert told[drained].reason == ResultReason.INTERNAL_SERVER_ERROR
        assert str(told[drained].message).endswith("cannot be reached; try again later")
        client, value = others[drained]
        assert (await client.polled(value)).status == ResultStatus.SUCCESS
        for backend, (other, ticket) in tickets.items():  # a ticket alone goes to another key manager
            item = await other.item(with_ticket(ticket))
            assert item.reason == (ResultReason.INVALID_TICKET if backend == drained else None), item.message
    finally:
        await trio.to_thread.run_sync(site.command, 0, "enable", "kms-1")
    client, value = values[drained]
    assert (await client.polled(value)).status == ResultStatus.SUCCESS


class Reader:
    """A client that gets known keys until stopped. A connection that ends without an answer is counted."""

    def __init__(self, caller: Caller, keys: Sequence[str]) -> None:
        self.answered = self.lost = 0
        self._caller = caller
        self._keys = keys

    async def run(self, stop: trio.Event) -> None:
        while not stop.is_set():
            for uid in self._keys:
                try:
                    item = await self._caller.item(get_key(uid))
                except GatewayError:
                    self.lost += 1
                    continue
                assert item.status == ResultStatus.SUCCESS, item.message
                self.answered += 1
            await trio.sleep(0.02)


async def test_reads_survive_a_key_manager_and_a_gateway(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A killed gateway costs the requests that it had, and no later request."""
    with running_site(Certificates(tmp_path_factory.mktemp("failover")), lag=0.05) as site:
        async with balanced(site) as balancer, trio.open_nursery() as nursery:
            alice = Caller(site, balancer)
            keys = [await alice.create() for _ in range(2 * len(MASTERS))]
            values = await one_of_each(site, balancer, Caller.begin)
            readers = [Reader(alice, keys) for _ in range(3)]
            stop = trio.Event()
            for reader in readers:
                nursery.start_soon(reader.run, stop)
            await trio.sleep(1)
            site.key_managers[0].kill()
            await trio.sleep(2)
            assert sum(reader.lost for reader in readers) == 0
            told = [await client.polled(value) for client, value in values.values()]
            assert [item.status for item in told].count(ResultStatus.SUCCESS) == len(MASTERS) - 1
            (refused,) = [item for item in told if item.status != ResultStatus.SUCCESS]
            assert str(refused.message).endswith("cannot be reached; try again later")
            site.gateways[0].process.send_signal(signal.SIGKILL)
            await trio.sleep(0.3)
            before = [(reader.answered, reader.lost) for reader in readers]
            await trio.sleep(2)
            for reader, (answered, lost) in zip(readers, before, strict=True):
                assert reader.answered > answered
                assert reader.lost == lost <= 1
            assert (await alice.create()) not in keys
            stop.set()
        assert balancer.refused == 0
