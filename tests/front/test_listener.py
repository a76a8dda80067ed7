"""The listener: clients that are admitted, refused, isolated from each other, and drained."""

import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from kmip_lab.certs import Authority
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import AllowanceConfig, MatchConfig
from gateway.errors import StreamClosedError, TlsError
from gateway.kmip.spec import ResultReason
from gateway.tls import TlsStream, client_context
from tests.kit.front import (
    NAME,
    NO_CLIENT,
    PART_OF_HELLO,
    Front,
    connect_tcp,
    number_of,
    open_front,
    request,
    until,
    wait_for_end,
)
from tests.kit.processes import Certificates
from tests.kit.settings import listener_config, make_admission
from tests.kit.streams import TLS_1_2, TLS_1_3, cancelled_everywhere, client_tls, descriptors

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture
async def front(certificates: Certificates) -> AsyncIterator[Front]:
    async with open_front(certificates) as front:
        yield front


# Limits of clients ----------------------------------------------------------------------------------------------------


async def test_client_over_max_clients_gets_an_error_until_a_client_closes(certificates: Certificates) -> None:
    settings = listener_config(NAME, max_clients=2)
    async with open_front(certificates, settings=settings) as front, front.client() as first:
        async with front.client() as second:
            async with front.client() as third:
                answer = await third.ask(request(version=(2, 1)))
                assert answer.items[0].reason == ResultReason.SERVER_LIMIT_EXCEEDED
                assert await third.stream.receive_some() == b""
            for client in (first, second):
                assert number_of(await client.ask(request(3))) == 3
        async with front.client() as next_one:
            assert number_of(await next_one.ask(request(4))) == 4
        assert front.errors == {"limit": 1}


async def test_65th_refused_client_is_closed_before_its_handshake(certificates: Certificates, clock: MockClock) -> None:
    async with open_front(certificates, settings=listener_config(NAME, max_clients=1)) as front:
        async with front.client() as holder, AsyncExitStack() as told:
            assert number_of(await holder.ask(request(1))) == 1
            context = client_tls(front.certificates)
            for _ in range(64):
                await told.enter_async_context(front.client(context=context))
            await until(lambda: front.listener._refused == 64)
            with connect_tcp(front) as other:
                await wait_for_end(other)
            assert clock.current_time() < 3
            assert number_of(await holder.ask(request(2))) == 2
            await trio.sleep(3.5)
            assert front.listener._refused == 0
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3
    assert front.errors == {"limit": 65}
    assert front.count("limit_rejections_total", limit="listener_max_clients") == 65
    assert front.log.entries[0]["setting"] == "listeners.max_clients"


@pytest.mark.parametrize("match", [MatchConfig(subject_cn=("bob",)), None], ids=["no rule", "over its limit"])
async def test_refused_clients_do_not_count_as_clients(
    certificates: Certificates, clock: MockClock, match: MatchConfig | None
) -> None:
    """No rule matches alice, or alice may have one connection: 100 of her connections do not exclude bob."""
    admission = make_admission(allowances={"everyone": AllowanceConfig(max_clients=1)})
    settings = listener_config(NAME, max_clients=2)
    async with (
        open_front(certificates, settings=settings, admission=admission, match=match) as front,
        AsyncExitStack() as stack,
    ):
        context = client_tls(front.certificates)
        for _ in range(100):
            with suppress(StreamClosedError, TlsError):
                await stack.enter_async_context(front.client(context=context))
        assert clock.current_time() < 3
        async with front.client("bob") as bob:
            assert number_of(await bob.ask(request(7))) == 7
        await trio.sleep(5)
    assert admission.clients == 0
    assert len(admission.half_open) == 0


async def test_half_open_connections_do_not_count_as_clients(certificates: Certificates) -> None:
    admission = make_admission(max_clients=1)
    async with open_front(certificates, admission=admission) as front, AsyncExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect_tcp(front)).send(PART_OF_HELLO)
        await until(lambda: front.clients == 20)
        async with front.client() as client:
            assert number_of(await client.ask(request(3))) == 3


class Exhausted(socket.socket):
    """A listening socket in a process that runs out of resources for a while."""

    failures = (errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED)

    def accept(self) -> tuple[socket.socket, object]:
        """Raise the errors first."""
        if self.failures:
            number, *self.failures = self.failures  # type: ignore[assignment]
            raise OSError(number, "as if")
        return super().accept()


async def test_clients_wait_while_there_are_no_descriptors(certificates: Certificates, clock: MockClock) -> None:
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    async with open_front(certificates, listening=listening) as front, front.client() as client:
        assert number_of(await client.ask(request(3))) == 3
    assert 0.2 <= clock.current_time() < 1
    assert [entry["event"] for entry in front.log.entries] == [
        "cannot accept clients: out of file descriptors or memory; raise the limits of the process"
    ]  # at most once a second


# One client's faults --------------------------------------------------------------------------------------------------


async def test_internal_error_closes_only_the_connection_of_its_client(front: Front) -> None:
    async with front.client() as bystander:
        await bystander.ask(request())
        async with front.client() as unlucky:
            front.dispatcher.fault = RuntimeError("a bug")
            with pytest.raises(StreamClosedError):
                await unlucky.ask(request())
            front.dispatcher.fault = None
        assert number_of(await bystander.ask(request(8))) == 8
    assert front.errors == {"internal": 1}
    assert isinstance(front.log.entries[0]["exc_info"], RuntimeError)


def signed_anew(certificate: x509.Certificate, authority: Authority, old: bytes, new: bytes) -> bytes:
    """Return a certificate with changed bytes and a new signature, as PEM."""
    tbs = certificate.tbs_certificate_bytes
    assert tbs.count(old) == 1
    tbs = tbs.replace(old, new)
    key = authority._key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = b"\x00" + key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    content = tbs + ecdsa_with_sha256 + b"\x03" + bytes([len(signature)]) + signature
    der = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    return ssl.DER_cert_to_PEM_cert(der).encode()


#: Certificates that OpenSSL accepts and stricter parsers do not: old bytes, new bytes.
ODD: dict[str, tuple[bytes, bytes]] = {
    "an asterisk in a PrintableString": (b"\x0c\x05alice", b"\x13\x05al*ce"),
    "version 5": (bytes.fromhex("a003020102"), bytes.fromhex("a003020104")),
}


@pytest.mark.parametrize("what", ODD)
async def test_client_with_an_unreadable_certificate_has_no_identity(front: Front, what: str) -> None:
    certificate, key = front.certificates.pair("odd")
    issued = front.certificates.clients_ca.issue_client("alice")
    issued.write(certificate, key)
    certificate.write_bytes(signed_anew(issued.certificate, front.certificates.clients_ca, *ODD[what]))
    async with front.client() as bystander:
        context = client_context(certificate, key, front.certificates.path("gateway_ca.pem"))
        async with front.client(context=context) as client:
            answer = await client.ask(request())
        assert answer.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        assert number_of(await bystander.ask(request(2))) == 2
    assert front.errors == {"not_authenticated": 1}


async def test_names_in_certificates_do_not_reach_the_log(certificates: Certificates) -> None:
    async with open_front(certificates, match=NO_CLIENT) as front:
        name = "eve\n2026-01-01 [info] all is well\x1b[2J"
        pair = certificates.pair("eve")
        certificates.clients_ca.issue_client(name).write(*pair)
        async with front.client(context=client_context(*pair, certificates.path("gateway_ca.pem"))) as client:
            await client.ask(request())
    assert front.log.entries
    assert "well" not in repr(front.log.entries)


# Drain ----------------------------------------------------------------------------------------------------------------


async def test_drain_ends_handshakes_and_new_connections(front: Front) -> None:
    with connect_tcp(front) as silent, connect_tcp(front) as half:
        half.send(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: front.clients == 2)
        front.listener.drain()
        with trio.fail_after(5):
            await wait_for_end(silent)
            await wait_for_end(half)
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(front)
    assert front.errors == {"drain": 2}


async def test_a_listener_that_is_drained_before_it_begins_serves_nobody(certificates: Certificates) -> None:
    async with open_front(certificates) as front:
        front.listener.drain()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(front)


async def test_connections_that_arrive_with_the_drain_do_not_delay_it(certificates: Certificates) -> None:
    """A client wakes the listener, and a drain begins before ``accept``: trio runs tasks in random order."""
    for _ in range(20):
        async with open_front(certificates) as front, trio.open_nursery() as nursery:
            wakes, woken = socket.socketpair()

            async def drain(front: Front = front, woken: socket.socket = woken) -> None:
                await trio.lowlevel.wait_readable(woken)
                front.listener.drain()

            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            with wakes, woken, connect_tcp(front) as client:
                wakes.send(b"!")
                await wait_for_end(client)
            await until(lambda: front.clients == 0)
            with pytest.raises(ConnectionRefusedError):
                connect_tcp(front)


async def test_drain_may_come_at_any_moment(front: Front) -> None:
    """The drain waits for no client, and each request is either answered or was never dispatched."""

    async def drained_after(step: int) -> bool:
        async with open_front(front.certificates) as drained, trio.open_nursery() as nursery:
            answered = trio.Event()
            instrument = DrainAtStep(drained, step)
            trio.lowlevel.add_instrument(instrument)
            nursery.start_soon(connect_and_ask, drained, answered)
            try:
                # Run in every tick, so that the drain falls between the event that wakes a task and the task's step.
                while not (instrument.drained or answered.is_set()):
                    await trio.lowlevel.checkpoint()
            finally:
                trio.lowlevel.remove_instrument(instrument)
            in_time = instrument.drained
            instrument.drain()
            await until(lambda: drained.clients == 0)
            nursery.cancel_scope.cancel()
        assert len(drained.dispatcher.asked) == drained.dispatcher.answered
        return in_time

    step = 1
    while await drained_after(step):
        step += 1
        assert step < 400
    assert step > 10


class DrainAtStep(trio.abc.Instrument):
    """Drains a listener after so many steps of any tasks."""

    def __init__(self, front: Front, step: int) -> None:
        self._front = front
        self._left = step
        self.drained = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - the name is trio's
        """Count the steps."""
        self._left -= 1
        if self._left == 0:
            self.drain()

    def drain(self) -> None:
        """Drain the listener."""
        if not self.drained:
            self.drained = True
            self._front.listener.drain()


async def connect_and_ask(front: Front, answered: trio.Event | None = None) -> None:
    """Connect, send requests until the connection is closed; ignore a refused connection."""
    try:
        sock = connect_tcp(front)
    except ConnectionRefusedError:
        return
    stream = TlsStream(sock, client_tls(front.certificates), server_side=False, server_name="localhost")
    try:
        await stream.handshake()
        await stream.send_all(request())
        while await stream.receive_some():
            if answered is None:
                break
            answered.set()
    except (StreamClosedError, TlsError):
        pass
    finally:
        stream.close()


# Leaks ----------------------------------------------------------------------------------------------------------------


async def test_a_listener_cancelled_at_any_step_leaves_no_descriptor_behind(certificates: Certificates) -> None:
    async def story() -> None:
        async with open_front(certificates) as front:
            uses: list[Callable[[Front], Awaitable[None]]] = [connect_and_ask, connect_and_ask, connect_and_close]
            async with trio.open_nursery() as nursery:
                for use in uses:
                    nursery.start_soon(use, front)

    await story()
    before = descriptors()
    assert await cancelled_everywhere(story, 400) > 10
    assert descriptors() == before


async def connect_and_close(front: Front) -> None:
    """Close a connection before its handshake; ignore a refused connection."""
    with suppress(ConnectionRefusedError), connect_tcp(front):
        await trio.lowlevel.checkpoint()
