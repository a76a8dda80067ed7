"""Tests of open_session, over real TLS on the loopback: a session is open once the key manager has answered on it."""

import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from kmip_lab.certs import Authority

from gateway import tls
from gateway.config import Address, OwnCertificate, PoolConfig
from gateway.errors import BackendError, Stage, StreamClosedError, TlsError
from gateway.kmip import compose
from gateway.kmip.decode import decode_request
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request
from gateway.kmip.spec import ResultReason, Tag
from gateway.revocation import Trust
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.open_session import VALIDATION_REQUESTS, SessionTarget, open_session
from gateway.upstream.session import SessionState
from tests.kit.fake_backends import LIMITS, answer_to, ask, name_in
from tests.kit.revocation import DAY, HOUR, TestCa

Answer = Callable[[Request], bytes | None]
DEADLINE = 10.0  # s of real time, in which each test must end


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of certificates and keys."""
    directory: Path = tmp_path_factory.mktemp("certificates")

    def pair(name: str) -> tuple[Path, Path]:
        return directory / f"{name}.pem", directory / f"{name}.key"

    servers, clients, foreign = Authority("Servers"), Authority("Clients"), Authority("Foreign")
    for name, authority in {"servers-ca": servers, "clients-ca": clients, "foreign-ca": foreign}.items():
        (directory / f"{name}.pem").write_bytes(authority.certificate_pem)
    last_year = datetime.now(UTC) - timedelta(days=365)
    servers.issue_server("kms").write(*pair("kms"))
    servers.issue_server("elsewhere", ["elsewhere.example"]).write(*pair("elsewhere"))
    servers.issue_server("old", not_before=last_year, not_after=last_year + timedelta(days=90)).write(*pair("old"))
    clients.issue_client("gateway").write(*pair("gateway"))
    foreign.issue_client("gateway").write(*pair("foreign"))
    return directory


class Server:
    """A key manager on a loopback port. ``answer`` makes its answers; None closes the connection."""

    def __init__(self, certificates: Path, certificate: str, answer: Answer) -> None:
        self._context = tls.server_context(
            certificates / f"{certificate}.pem", certificates / f"{certificate}.key", certificates / "clients-ca.pem"
        )
        self._answer = answer
        self.asked: list[str] = []
        self.seen_closing = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            task_status.started(Address("127.0.0.1", listening.getsockname()[1]))
            async with trio.open_nursery() as connections:
                while True:
                    await trio.lowlevel.wait_readable(listening)
                    connections.start_soon(
                        self._converse, tls.TlsStream(listening.accept()[0], self._context, server_side=True)
                    )

    async def _converse(self, stream: tls.TlsStream) -> None:
        reader = FrameReader(Tag.REQUEST_MESSAGE, 1 << 20)
        try:
            await stream.handshake()
            while data := await stream.receive_some():
                frame = reader.feed(data)
                if frame is None:
                    continue
                request = decode_request(frame)
                self.asked.append(name_in(request))
                answer = self._answer(request)
                if answer is None:
                    break
                await stream.send_all(answer)
        except (StreamClosedError, TlsError):
            pass
        finally:
            self.seen_closing.set()
            stream.close()


class NoNames(trio.abc.HostnameResolver):
    """A name server that knows no name; with ``is_silent`` it never answers."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent

    async def getaddrinfo(self, *_arguments: object) -> list[object]:  # type: ignore[override]
        if self._is_silent:
            await trio.sleep_forever()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_arguments: object) -> tuple[str, str]:
        raise NotImplementedError


class Meeting(NamedTuple):
    """A server, and the target to open sessions to it."""

    server: Server
    target: SessionTarget


async def meet(
    nursery: trio.Nursery,
    certificates: Path,
    answer: Answer = answer_to,
    *,
    certificate: str = "kms",
    credential: str = "gateway",
    ca: str | None = "servers-ca",
    pinned: str | None = None,
) -> Meeting:
    server = Server(certificates, certificate, answer)
    address = await nursery.start(server.serve)
    context = tls.client_context(
        certificates / f"{credential}.pem",
        certificates / f"{credential}.key",
        None if ca is None else certificates / f"{ca}.pem",
    )
    pins = frozenset[str]() if pinned is None else frozenset({fingerprint(certificates / f"{pinned}.pem")})
    name = None if ca is None else "localhost"
    return Meeting(
        server,
        SessionTarget(
            "atlanta",
            Endpoint(address),
            context,
            name,
            pins,
            LIMITS,
            VALIDATION_REQUESTS["discover-versions"],
        ),
    )


def fingerprint(certificate: Path) -> str:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()


async def refusal_of(target: SessionTarget) -> BackendError:
    with trio.fail_after(DEADLINE), pytest.raises(BackendError) as caught:
        await open_session(target)
    return caught.value


# As it should be -----------------------------------------------------------------------------------------------------


async def test_a_session_is_opened_validated_and_carries_requests(nursery: trio.Nursery, certificates: Path) -> None:
    server, target = await meet(nursery, certificates)

    with trio.fail_after(DEADLINE):
        session = await open_session(target)
        assert (session.state, session.requests, session.peer) == (SessionState.IDLE, 0, "127.0.0.1")
        response = await session.exchange(ask("key-1"))
        assert session.is_quiet()  # session tickets have come, and don't count
        session.close()
        await server.seen_closing.wait()

    assert name_in(response) == "key-1"
    assert server.asked == ["", "key-1"]


async def test_a_session_that_the_key_manager_closes_is_not_quiet(nursery: trio.Nursery, certificates: Path) -> None:
    server, target = await meet(nursery, certificates, lambda request: None if name_in(request) else answer_to(request))

    with trio.fail_after(DEADLINE):
        session = await open_session(target)
        with pytest.raises(BackendError) as caught:
            await session.exchange(ask("key-1"))
        await server.seen_closing.wait()

    assert (caught.value.stage, caught.value.reason) == (Stage.WAIT, "closed")
    assert not session.is_quiet()
    session.close()


async def test_a_pinned_certificate_needs_no_ca(nursery: trio.Nursery, certificates: Path) -> None:
    _server, target = await meet(nursery, certificates, ca=None, pinned="kms")

    with trio.fail_after(DEADLINE):
        session = await open_session(target)

    assert session.state is SessionState.IDLE
    session.close()


@pytest.mark.parametrize("probe", VALIDATION_REQUESTS)
@pytest.mark.parametrize(
    "reason",
    [
        ResultReason.OPERATION_NOT_SUPPORTED,  # Discover Versions came with KMIP 1.1: a server of 1.0 does not know it
        ResultReason.PERMISSION_DENIED,  # the role of this credential lacks the operation
        ResultReason.NOT_AUTHORISED,
        ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,  # each request must carry a password, which clients' requests do
    ],
)
async def test_any_well_formed_answer_validates_a_session(
    nursery: trio.Nursery, certificates: Path, reason: ResultReason, probe: str
) -> None:
    def refuses_the_probe(request: Request) -> bytes:
        return answer_to(request) if name_in(request) else compose.failure(request, reason, "go away")

    _server, target = await meet(nursery, certificates, refuses_the_probe)

    with trio.fail_after(DEADLINE):
        session = await open_session(target._replace(validation_request=VALIDATION_REQUESTS[probe]))
        assert session.state is SessionState.IDLE
        response = await session.exchange(ask("key-1"))

    assert name_in(response) == "key-1"
    session.close()


@pytest.mark.parametrize("is_silent", [False, True], ids=["fails", "is silent"])
async def test_the_last_addresses_are_used_while_the_resolver_fails(
    nursery: trio.Nursery, certificates: Path, is_silent: bool
) -> None:
    _server, target = await meet(nursery, certificates)
    trio.socket.set_custom_hostname_resolver(NoNames(is_silent=is_silent))
    known = Endpoint(Address("kms.invalid", target.endpoint.address.port), ("127.0.0.1",))

    with trio.fail_after(DEADLINE):
        session = await open_session(target._replace(endpoint=known))

    assert session.peer == "127.0.0.1"
    assert known.is_current(session)
    session.close()


async def test_the_kernel_notices_a_key_manager_that_has_vanished(nursery: trio.Nursery, certificates: Path) -> None:
    _server, target = await meet(nursery, certificates)
    with trio.fail_after(DEADLINE):
        session = await open_session(target._replace(tcp=PoolConfig(tcp_keepalive=5, tcp_user_timeout=10.0)))

    stream = session._stream
    assert isinstance(stream, tls.TlsStream)
    options = (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
    assert [stream._socket.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [5, 10_000]
    session.close()


@pytest.mark.parametrize("revoked", [False, True])
async def test_a_revoked_key_manager_gets_no_session(
    nursery: trio.Nursery, certificates: Path, tmp_path: Path, *, revoked: bool
) -> None:
    authority = TestCa("Servers")
    (certificates / "own-ca.pem").write_bytes(authority.pem)
    pair = certificates / "own.pem", certificates / "own.key"
    certificate = authority.issue("localhost", pair, for_server=True)
    crl = tmp_path / "kms.crl"
    crl.write_bytes(authority.crl_pem([certificate] if revoked else []))
    _server, target = await meet(nursery, certificates, certificate="own", ca="own-ca")
    target = target._replace(trust=Trust.load(certificates / "own-ca.pem", [crl], accepts_stale=False))
    if revoked:
        error = await refusal_of(target)
        assert (error.stage, error.reason) == (Stage.CONNECT, "revoked")
        assert "the key manager's certificate is not accepted: revoked" in str(error)
    else:
        with trio.fail_after(DEADLINE):
            (await open_session(target)).close()


async def test_a_key_manager_without_a_current_crl_gets_no_session(
    nursery: trio.Nursery, certificates: Path, tmp_path: Path
) -> None:
    authority = TestCa("Servers")
    (certificates / "late-ca.pem").write_bytes(authority.pem)
    authority.issue("localhost", (certificates / "late.pem", certificates / "late.key"), for_server=True)
    crl = tmp_path / "kms.crl"
    crl.write_bytes(authority.crl_pem(begins=-DAY, lasts=-HOUR))
    _server, target = await meet(nursery, certificates, certificate="late", ca="late-ca")
    ca = certificates / "late-ca.pem"
    error = await refusal_of(target._replace(trust=Trust.load(ca, [crl], accepts_stale=False)))
    assert error.reason == "crl_stale"
    with trio.fail_after(DEADLINE):
        (await open_session(target._replace(trust=Trust.load(ca, [crl], accepts_stale=True)))).close()


# As it should not be -------------------------------------------------------------------------------------------------


def answers_twice(request: Request) -> bytes:
    return answer_to(request) * 2


def answers_another(_request: Request) -> bytes:
    return answer_to(ask("key-1"))


REFUSALS = {
    "closes instead of an answer": ({"answer": lambda _request: None}, "credential"),
    "talks HTTP": ({"answer": lambda _request: b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "validation"),
    "answers something else": ({"answer": answers_another}, "validation"),
    "says more than was asked": ({"answer": answers_twice}, "validation"),
    "does not take the certificate": ({"credential": "foreign"}, "credential"),
    "has a certificate of another CA": ({"ca": "foreign-ca"}, "unknown_ca"),
    "has a certificate for another name": ({"certificate": "elsewhere"}, "hostname"),
    "has an old certificate": ({"certificate": "old"}, "expired"),
    "is not the pinned one": ({"ca": None, "pinned": "elsewhere"}, "pin"),
    "is not the pinned one, of the right CA": ({"pinned": "elsewhere"}, "pin"),
}


@pytest.mark.parametrize(("how", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_each_refusal_has_its_reason_and_nothing_was_sent(
    nursery: trio.Nursery, certificates: Path, how: dict[str, object], reason: str
) -> None:
    server, target = await meet(nursery, certificates, **how)  # type: ignore[arg-type]

    error = await refusal_of(target)

    assert (error.stage, error.reason, error.backend) == (Stage.CONNECT, reason, "atlanta")
    with trio.fail_after(DEADLINE):
        await server.seen_closing.wait()  # and the connection is closed


@pytest.mark.parametrize(("days", "is_told"), [(-1, True), (1, False)])
async def test_a_refusal_of_a_certificate_that_has_ended_is_explained(
    nursery: trio.Nursery, certificates: Path, days: int, is_told: bool
) -> None:
    _server, target = await meet(nursery, certificates, credential="foreign")
    ends = datetime.now(UTC) + timedelta(days=days)
    own = OwnCertificate("app-1", certificates / "foreign.pem", ends - timedelta(days=30), ends)

    error = await refusal_of(target._replace(own=own))

    told = f"the gateway's own certificate {own.file} for identity app-1 ended on {ends:%Y-%m-%d}; renew it"
    assert error.args[0].startswith(told) is is_told
    assert error.reason == "credential"


async def test_the_alert_of_a_key_manager_that_has_closed_is_told(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "kms.pem", certificates / "kms.key")
    context.load_verify_locations(certificates / "clients-ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    has_closed = threading.Event()

    def refuse(listening: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(listening.accept()[0], server_side=True):
            pass
        has_closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        target = SessionTarget(
            "atlanta",
            Endpoint(Address("127.0.0.1", listening.getsockname()[1])),
            tls.client_context(
                certificates / "foreign.pem", certificates / "foreign.key", certificates / "servers-ca.pem"
            ),
            "localhost",
            frozenset(),
            LIMITS,
            VALIDATION_REQUESTS["discover-versions"],
            handshaken=lambda _stream: assert_true(has_closed.wait(DEADLINE)),
        )
        error = await refusal_of(target)

    assert error.reason == "credential"
    assert "unknown ca: the key manager does not accept the certificate" in error.args[0]


def assert_true(value: object) -> None:
    assert value


async def test_a_port_that_nobody_listens_on_is_refused(nursery: trio.Nursery, certificates: Path) -> None:
    _server, target = await meet(nursery, certificates)
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(("127.0.0.1", 0))
        error = await refusal_of(target._replace(endpoint=Endpoint(Address("127.0.0.1", sock.getsockname()[1]))))

    assert (error.stage, error.reason) == (Stage.CONNECT, "connect")
    assert "Connection refused" in str(error)


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Let this process get no further descriptor, for the length of a block."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


@pytest.mark.parametrize("host", ["127.0.0.1", "kms.invalid"])
async def test_a_lack_of_descriptors_has_a_reason_of_its_own(
    nursery: trio.Nursery, certificates: Path, host: str
) -> None:
    """A refusal or an unknown name would count against the key manager; a lack of descriptors must not."""
    _server, target = await meet(nursery, certificates)
    trio.socket.set_custom_hostname_resolver(NoNames() if host == "kms.invalid" else None)
    with without_descriptors():
        error = await refusal_of(target._replace(endpoint=Endpoint(Address(host, 5696))))

    assert (error.stage, error.reason) == (Stage.CONNECT, "resources")
    assert "Too many open files" in str(error)


async def test_a_name_without_an_address_is_refused(nursery: trio.Nursery, certificates: Path) -> None:
    _server, target = await meet(nursery, certificates)

    trio.socket.set_custom_hostname_resolver(NoNames())
    error = await refusal_of(target._replace(endpoint=Endpoint(Address("kms.invalid", 5696))))

    assert (error.stage, error.reason) == (Stage.CONNECT, "connect")
    assert "can't connect to kms.invalid:5696: " in str(error)
    assert "Name or service not known" in str(error)


async def test_a_failed_connection_asks_for_a_lookup_of_the_name(nursery: trio.Nursery, certificates: Path) -> None:
    """The backend may have moved. If this process lacks descriptors, no other address would help."""
    _server, target = await meet(nursery, certificates)
    told: list[str] = []
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(("127.0.0.1", 0))
        known = Endpoint(Address("kms.invalid", sock.getsockname()[1]), ("127.0.0.1", "127.0.0.2"))
        known.connect_failed = lambda: told.append("failed")

        error = await refusal_of(target._replace(endpoint=known))
        assert "127.0.0.1: Connection refused; 127.0.0.2: Connection refused" in str(error)
        assert told == ["failed"]
        with without_descriptors():
            assert (await refusal_of(target._replace(endpoint=known))).reason == "resources"
        assert told == ["failed"]

    trio.socket.set_custom_hostname_resolver(NoNames(is_silent=True))
    unknown = Endpoint(Address("kms.invalid", 5696))
    unknown.connect_failed = lambda: told.append("too late")
    with trio.move_on_after(0.01):
        await open_session(target._replace(endpoint=unknown))
    assert told == ["failed", "too late"]


async def test_cancelling_an_open_closes_its_connection(nursery: trio.Nursery, certificates: Path) -> None:
    asked = trio.Event()

    def says_nothing(_request: Request) -> bytes:
        asked.set()
        return b""

    server, target = await meet(nursery, certificates, says_nothing)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as opening:
            opening.start_soon(open_session, target)
            await asked.wait()
            opening.cancel_scope.cancel()
        await server.seen_closing.wait()
