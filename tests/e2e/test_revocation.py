"""Certificates that are revoked, expire, lose their CA or get another identity, with real clients.

Each is tried with connections that were open before, with resumed sessions, and with full handshakes, in TLS 1.2 and
1.3, with one process and with TLS workers.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from kmip_lab.keymanager.journal import read_journal
from kmip_lab.tools.requests import create_key

from gateway.kmip import compose
from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultReason, ResultStatus
from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
    wait_until,
)
from tests.kit.resuming import context_of, read_response, session
from tests.kit.revocation import DAY, TestCa

QUERY = compose.query((1, 2))
VERSIONS = ("TLSv1.2", "TLSv1.3")
ERRORS = "kmip_gateway_client_connection_errors_total"
LISTENER = 'client_crl = ["root.crl", "intermediate.crl"]\nresumption_lifetime = 600\n'


@pytest.fixture(params=[0, 2], ids=["one process", "TLS workers"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(processes, "TLS_WORKERS", request.param)
    return int(request.param)


@dataclass
class Client:
    """A client with a connection and a session in each version of TLS."""

    gateway: Gateway
    name: str
    kept: dict[str, ssl.SSLSocket] = field(default_factory=dict)
    sessions: dict[str, ssl.SSLSession | None] = field(default_factory=dict)
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def connect(self, stack: ExitStack) -> None:
        """Connect in each version, and keep the connections and the sessions until the end of the stack."""
        for version in VERSIONS:
            self.contexts[version] = context_of(self.gateway, self.name, version)
            talking = self.kept[version] = stack.enter_context(session(self.gateway, self.contexts[version]))
            assert ask(talking).items[0].status == ResultStatus.SUCCESS
            self.sessions[version] = talking.session

    def is_served_when_kept(self) -> bool:
        return all(ask(talking).items[0].status == ResultStatus.SUCCESS for talking in self.kept.values())

    def wait_until_cut(self) -> None:
        """Wait until the gateway has ended all connections."""
        for talking in self.kept.values():
            talking.settimeout(10)
            with suppress(ConnectionError, ssl.SSLError):
                assert talking.recv(1) == b""

    def resumed(self, version: str) -> Response:
        """Ask on a connection with the session of before."""
        with session(self.gateway, self.contexts[version], self.sessions[version]) as talking:
            answer = ask(talking)
            assert talking.session_reused
            return answer

    def fresh(self, version: str) -> Response:
        """Ask on a connection after a full handshake."""
        with session(self.gateway, self.contexts[version]) as talking:
            return ask(talking)


def ask(talking: ssl.SSLSocket, frame: bytes = QUERY) -> Response:
    talking.sendall(frame)
    return read_response(talking)


def is_refused(response: Response, text: str) -> bool:
    item = response.items[0]
    return item.reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL and text in (item.message or "")


class Deployment:
    """A running gateway, whose clients' CA is a root with an intermediate CA below it."""

    def __init__(self, folder: Path) -> None:
        self.certificates = Certificates(folder)
        self.root = TestCa("Root")
        self.intermediate = TestCa("Intermediate", self.root)
        self.second_root = TestCa("Second root")
        self.issued: dict[str, x509.Certificate] = {}
        self.write_ca(self.root, self.intermediate, self.second_root)
        self.revoke()

    def write(self, name: str, content: bytes) -> None:
        """Replace a file, as a tool that fetches CRLs does."""
        path = self.certificates.path(f"{name}.new")
        path.write_bytes(content)
        path.rename(self.certificates.path(name))

    def write_ca(self, *authorities: TestCa) -> None:
        self.write("clients_ca.pem", b"".join(each.pem for each in authorities))

    def issue(self, name: str, by: TestCa | None = None, lasts: timedelta = DAY) -> None:
        self.issued[name] = (by or self.intermediate).issue(name, self.certificates.pair(name), lasts=lasts)

    def revoke(self, *certificates: x509.Certificate) -> None:
        """Write new CRLs of all CAs, each with these certificates as far as the CA issued them."""
        for file, authority in (("intermediate.crl", self.intermediate), ("root.crl", self.root)):
            issued = [each for each in certificates if each.issuer == authority.certificate.subject]
            content = authority.crl_pem(issued)
            self.write(file, content + (self.second_root.crl_pem() if file == "root.crl" else b""))


@pytest.fixture
def it(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


@pytest.fixture
def key_managers(it: Deployment) -> Iterator[list[int]]:
    with running_key_managers(it.certificates, ("kms-1",)) as ports:
        yield ports


ALL = [Identity("everyone")]

Case = Callable[[Deployment], None]


@pytest.mark.parametrize(
    ("change", "refusal", "text"),
    [
        (lambda it: it.revoke(it.issued["alice"]), "revoked", "has been revoked"),
        (lambda it: it.revoke(it.intermediate.certificate), "revoked", "has been revoked"),
        (lambda it: it.write_ca(it.second_root, it.intermediate), "unknown_ca", "no longer trusted"),
    ],
    ids=["leaf revoked", "intermediate revoked", "CA removed"],
)
@pytest.mark.usefixtures("workers")
def test_a_client_without_trust_is_cut_and_not_served_again(
    it: Deployment, key_managers: list[int], change: Case, refusal: str, text: str
) -> None:
    it.issue("alice")
    it.issue("bob", it.second_root)
    settings = GatewaySettings(key_managers, ALL, listener=LISTENER)
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        alice, bob = Client(gateway, "alice"), Client(gateway, "bob")
        alice.connect(stack)
        bob.connect(stack)
        began = time.monotonic()
        if refusal == "unknown_ca":  # a CRL of a CA that is not in the file is a mistake
            it.write("root.crl", it.second_root.crl_pem())
            it.write("intermediate.crl", it.second_root.crl_pem())
        change(it)
        alice.wait_until_cut()
        print(f"cut after {time.monotonic() - began:.2f} s")
        assert bob.is_served_when_kept()
        for version in VERSIONS:
            if refusal == "revoked":
                assert is_refused(alice.resumed(version), text)
                assert bob.resumed(version).items[0].status == ResultStatus.SUCCESS
                assert is_refused(alice.fresh(version), text)
            else:
                assert not is_served(alice, version)
            assert bob.fresh(version).items[0].status == ResultStatus.SUCCESS
        assert gateway.total(ERRORS, reason=refusal) >= 2
        if refusal == "revoked":
            assert gateway.total(ERRORS, reason=refusal) == 6
            it.revoke()
            wait_until(lambda: is_served(alice, "TLSv1.3"), "service after the end of a revocation")
            assert alice.resumed("TLSv1.2").items[0].status == ResultStatus.SUCCESS
        log = gateway.log.read_text()
        assert "client disconnected: its certificate is no longer accepted" in log
        assert "internal error" not in log
        assert "Traceback" not in log


def is_served(client: Client, version: str) -> bool:
    """Return True if a client is served after a resumed handshake, if possible, or a full one."""
    try:
        with session(client.gateway, client.contexts[version], client.sessions[version]) as talking:
            return ask(talking).items[0].status == ResultStatus.SUCCESS
    except (ssl.SSLError, ConnectionError, AssertionError):
        return False


@pytest.mark.parametrize("which", ["leaf", "intermediate"])
@pytest.mark.usefixtures("workers")
def test_a_certificate_that_expires_ends_its_connections(it: Deployment, key_managers: list[int], which: str) -> None:
    settings = GatewaySettings(key_managers, ALL, listener="resumption_lifetime = 600\n")
    lasts = timedelta(seconds=9)
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        by = TestCa("Short", it.root, lasts=DAY if which == "leaf" else lasts)
        it.issue("alice", by, DAY if which == "intermediate" else lasts)
        it.issue("bob", by=it.second_root)
        alice, bob = Client(gateway, "alice"), Client(gateway, "bob")
        alice.connect(stack)
        bob.connect(stack)
        alice.wait_until_cut()
        assert bob.is_served_when_kept()
        time.sleep(1.1)  # for OpenSSL, the last second of a certificate is the whole second
        for version in VERSIONS:
            assert is_refused(alice.resumed(version), "has expired")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                alice.fresh(version)


@pytest.mark.usefixtures("workers")
def test_a_client_of_another_identity_is_served_as_that_identity(it: Deployment, key_managers: list[int]) -> None:
    it.issue("alice")
    first = Identity("first", '{ subject_cn = "alice" }', shared=False, credential="owner-1")
    second = Identity("second", '{ subject_cn = "nobody" }', shared=False, credential="owner-2")
    settings = GatewaySettings(key_managers, [first, second], listener=LISTENER)
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        alice = Client(gateway, "alice")
        alice.connect(stack)
        path = it.certificates.path(f"gateway-{gateway.port}.toml")
        original = path.read_text()
        text = original.replace('"alice"', '"x"').replace('"nobody"', '"alice"')
        reload(gateway, path, text)
        for version in VERSIONS:
            before = len(owners(it))
            ask(alice.kept[version], create_key())
            with session(gateway, alice.contexts[version], alice.sessions[version]) as talking:
                ask(talking, create_key())
                assert talking.session_reused
            with session(gateway, alice.contexts[version]) as talking:
                ask(talking, create_key())
            assert owners(it)[before:] == ["owner-2"] * 3
        reload(gateway, path, text.replace('"alice"', '"nobody"'))
        for version in VERSIONS:
            assert is_refused(ask(alice.kept[version]), "matches no identity")
            assert is_refused(alice.resumed(version), "matches no identity")
            assert is_refused(alice.fresh(version), "matches no identity")


def reload(gateway: Gateway, path: Path, text: str) -> None:
    before = gateway.total("kmip_gateway_config_reloads_total", result="success")
    path.write_text(text)
    gateway.process.send_signal(1)
    wait_until(lambda: gateway.total("kmip_gateway_config_reloads_total", result="success") == before + 1, "the reload")


def owners(it: Deployment) -> list[str]:
    """Return the owner of each key that was made, in order."""
    return [entry.owner for entry in read_journal(it.certificates.path("journal.jsonl")) if entry.operation == "Create"]


@pytest.mark.parametrize("stale", ["refuse", "accept"])
@pytest.mark.usefixtures("workers")
def test_a_crl_that_becomes_stale_does_what_the_setting_says(
    it: Deployment, key_managers: list[int], stale: str
) -> None:
    it.issue("alice")
    it.issue("eve")
    settings = GatewaySettings(key_managers, ALL, listener=f'{LISTENER}crl_stale = "{stale}"\n')
    it.write("intermediate.crl", it.intermediate.crl_pem([it.issued["eve"]], lasts=timedelta(seconds=9)))
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        alice, eve = Client(gateway, "alice"), Client(gateway, "eve")
        alice.connect(stack)
        eve.contexts = {version: context_of(gateway, "eve", version) for version in VERSIONS}
        if stale == "refuse":
            alice.wait_until_cut()
            assert is_refused(alice.resumed("TLSv1.3"), "no current revocation list")
            assert is_refused(alice.fresh("TLSv1.2"), "no current revocation list")
        else:
            ends = gateway.total("kmip_gateway_crl_next_update_timestamp_seconds", issuer="CN=Intermediate")
            wait_until(lambda: time.time() > ends + 1.5, "the end of the CRL")
            assert alice.is_served_when_kept()
            assert alice.resumed("TLSv1.3").items[0].status == ResultStatus.SUCCESS
            assert alice.fresh("TLSv1.2").items[0].status == ResultStatus.SUCCESS
        assert is_refused(eve.fresh("TLSv1.3"), "has been revoked")
        it.revoke(it.issued["eve"])
        wait_until(lambda: is_served(alice, "TLSv1.3"), "service with a current CRL")
        assert is_refused(eve.fresh("TLSv1.3"), "has been revoked")


@pytest.mark.usefixtures("workers")
def test_a_mistake_elsewhere_stops_no_revocation(it: Deployment, key_managers: list[int]) -> None:
    it.issue("alice")
    it.issue("eve")
    settings = GatewaySettings(key_managers, ALL, listener=LISTENER)
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        alice, eve = Client(gateway, "alice"), Client(gateway, "eve")
        alice.connect(stack)
        eve.connect(stack)
        it.write("intermediate.crl", it.intermediate.crl_pem([it.issued["alice"]])[:200])
        wait_until(lambda: "CRLs not read again" in gateway.log.read_text(), "the mistake")
        assert gateway.total("kmip_gateway_config_reloads_total", result="failure") == 1
        assert alice.is_served_when_kept()
        path = it.certificates.path(f"gateway-{gateway.port}.toml")
        path.write_text("not TOML")
        it.revoke(it.issued["eve"])
        eve.wait_until_cut()
        assert alice.is_served_when_kept()


@pytest.mark.parametrize("stale", ["refuse", "accept"])
@pytest.mark.usefixtures("workers")
def test_no_damage_to_the_files_of_crls_lets_a_revoked_client_in(
    it: Deployment, key_managers: list[int], stale: str
) -> None:
    for name in ("alice", "bob", "carol", "eve"):
        it.issue(name)
    crls = it.certificates.path("crls")
    for number, revoked in ((1, ["eve"]), (2, ["eve", "bob"]), (3, ["eve", "bob", "carol"])):
        it.certificates.path(f"v{number}").mkdir()
        it.revoke(*[it.issued[name] for name in revoked])
        for file in ("root.crl", "intermediate.crl"):
            it.certificates.path(file).rename(it.certificates.path(f"v{number}") / file)
    crls.symlink_to("v1")
    listener = f'client_crl = ["crls/root.crl", "crls/intermediate.crl"]\ncrl_stale = "{stale}"\n'
    with (
        running_gateway(it.certificates, GatewaySettings(key_managers, ALL, listener=listener)) as gateway,
        ExitStack() as stack,
    ):
        alice, bob, carol, eve = (Client(gateway, name) for name in ("alice", "bob", "carol", "eve"))
        for client in (alice, bob, carol):
            client.connect(stack)
        eve.contexts = {version: context_of(gateway, "eve", version) for version in VERSIONS}

        def swap(target: str) -> None:
            it.certificates.path("crls.new").symlink_to(target)
            it.certificates.path("crls.new").rename(crls)

        def logged(event: str, *, after: Callable[[], object]) -> None:
            before = gateway.log.read_text().count(event)
            after()
            wait_until(lambda: gateway.log.read_text().count(event) > before, event)
            assert is_refused(eve.fresh("TLSv1.2"), "has been revoked")
            assert is_refused(eve.fresh("TLSv1.3"), "has been revoked")
            assert alice.is_served_when_kept()
            assert alice.fresh("TLSv1.3").items[0].status == ResultStatus.SUCCESS

        used = crls / "intermediate.crl"
        content = used.read_bytes()
        logged("CRLs not read again", after=lambda: used.write_bytes(b""))
        logged("CRLs read again", after=lambda: used.write_bytes(content))
        logged("CRLs read again", after=used.touch)
        logged("CRLs read again", after=lambda: swap("v2"))
        bob.wait_until_cut()
        logged("CRLs not read again", after=lambda: swap("missing"))
        assert is_refused(bob.fresh("TLSv1.3"), "has been revoked")
        assert carol.is_served_when_kept()
        logged("CRLs read again", after=lambda: swap("v3"))
        carol.wait_until_cut()
        logged("CRLs not read again", after=crls.unlink)
        for client in (bob, carol):
            assert is_refused(client.resumed("TLSv1.2"), "has been revoked")
            assert is_refused(client.resumed("TLSv1.3"), "has been revoked")


@pytest.mark.usefixtures("workers")
def test_a_revoked_client_that_does_not_read_its_answer_is_cut(it: Deployment, key_managers: list[int]) -> None:
    it.issue("alice")
    settings = GatewaySettings(key_managers, ALL, listener=LISTENER)
    with running_gateway(it.certificates, settings) as gateway, ExitStack() as stack:
        alice = Client(gateway, "alice")
        alice.connect(stack)
        talking = alice.kept["TLSv1.3"]
        talking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        talking.settimeout(0.2)
        with suppress(TimeoutError, ssl.SSLWantWriteError):
            while True:
                talking.sendall(QUERY * 50)
        it.revoke(it.issued["alice"])
        wait_until(lambda: gateway.total("kmip_gateway_client_connections") == 0, "the end of both connections", 8)
