"""Credentials towards the key managers: what a key manager saw of each client, under load and with kept sessions."""

import hashlib
import json
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509

from gateway.certificate_names import names_of
from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_response
from gateway.kmip.spec import CredentialType, Operation, ResultReason, ResultStatus, Tag
from tests.kit import processes
from tests.kit.authorities import Ca, common_name, write_secret
from tests.kit.processes import Certificates, Gateway, GatewaySettings, Identity, running_gateway, wait_until
from tests.kit.witness import PlainClient, Seen, Witness, get, witness

PASSWORD: Final = "correct-horse-battery-staple"
PASSPHRASE: Final = "a-passphrase-of-the-issuing-ca"
REQUESTS: Final = 60  # of each client
PER_CONNECTION: Final = 10


class Site:
    """A gateway, two witnesses, and clients of two CAs."""

    def __init__(self, folder: Path, running: ExitStack, identities: str) -> None:
        self.certificates = Certificates(folder)
        for name in ("shared", "alice", "bob"):
            self.certificates.credential(name)
        self.first, self.second = Ca.make("Storage CA"), Ca.make("Databases CA")
        issuing = [Ca.make("Issuing CA for storage"), Ca.make("Issuing CA for databases")]
        self.spare = Ca.make("Spare CA")
        for ca, name in zip(issuing, ("issuing-1", "issuing-2"), strict=True):
            ca.write(folder / name, PASSPHRASE.encode() if name == "issuing-2" else None)
        for ca, name in ((self.first, "first-ca"), (self.second, "second-ca")):
            ca.write(folder / name)
        (folder / "clients_ca.pem").write_bytes(self.first.pem + self.second.pem)
        (folder / "passphrase").write_text(PASSPHRASE + "\n")
        (folder / "password").write_text(PASSWORD + "\n")
        for name in ("passphrase", "password"):
            (folder / name).chmod(0o600)
        trusted = folder / "trusted.pem"
        trusted.write_bytes(
            folder.joinpath("kms_clients_ca.pem").read_bytes() + b"".join(ca.pem for ca in [*issuing, self.spare])
        )
        kms = (*self.certificates.pair("kms"), trusted)
        self.witnesses: list[Witness] = [running.enter_context(witness(*kms)) for _ in range(2)]
        own = Identity("own", '{ fingerprint_sha256 = "' + "0" * 64 + '" }', shared=False)
        settings = GatewaySettings([it.port for it in self.witnesses], [own], extra=identities)
        self.gateway: Gateway = running.enter_context(running_gateway(self.certificates, settings))

    def connect(self, name: str) -> PlainClient:
        """Return a client that shows the certificate of this name."""
        pair = self.certificates.pair(name)
        return PlainClient(self.gateway.port, *pair, self.certificates.path("gateway_ca.pem"))

    def load(self, names: list[str], header: tuple[bytes, ...] = ()) -> None:
        """Have clients send requests at once, on a new connection after every tenth; each asks for its own objects."""
        failures: list[str] = []

        def run(name: str) -> None:
            try:
                for connection in range(REQUESTS // PER_CONNECTION):
                    with self.connect(name) as client:
                        for number in range(PER_CONNECTION):
                            identifier = f"{name}-{connection * PER_CONNECTION + number}"
                            answer = decode_response(client.ask(get(identifier, header=header)))
                            if answer.items[0].status != ResultStatus.SUCCESS:
                                failures.append(f"{name}: {answer.items[0].message}")
            except (OSError, ProtocolError) as error:
                failures.append(f"{name}: {error!r}")

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures, failures[:3]

    def seen(self) -> list[Seen]:
        """Return the requests of clients that the witnesses saw."""
        return sorted((each for it in self.witnesses for each in it.for_clients), key=lambda each: each.time)

    def change(self, old: str, new: str, outcome: bytes = b"configuration reloaded") -> None:
        """Change the configuration file, have the gateway read it again, and wait until its log has the outcome."""
        path = self.certificates.path(f"gateway-{self.gateway.port}.toml")
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        self.reload(outcome)

    def reload(self, outcome: bytes = b"configuration reloaded") -> None:
        """Have the gateway read its files again, and wait until its log has the outcome."""
        before = self.written().count(outcome)
        self.gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.written().count(outcome) > before, "the reload")

    @contextmanager
    def loaded(self, *names: str) -> Iterator[None]:
        """Have clients send requests for the length of a block; assert that none fails."""
        failures: list[str] = []
        ended = threading.Event()

        def run(name: str) -> None:
            try:
                with self.connect(name) as client:
                    number = 0
                    while not ended.is_set():
                        number += 1
                        answer = decode_response(client.ask(get(f"{name}-{number}")))
                        if answer.items[0].status != ResultStatus.SUCCESS:
                            failures.append(f"{name}: {answer.items[0].message}")
                        time.sleep(0.002)
            except (OSError, ProtocolError) as error:
                failures.append(f"{name}: {error!r}")

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(30)
        assert not failures, failures[:3]

    def shown_to(self, name: str) -> tuple[str, str]:
        """Return subject and issuer of the certificate with the latest request of a client."""
        latest = next(it for it in reversed(self.seen()) if it.identifiers[0].startswith(name.encode()))
        certificate = x509.load_der_x509_certificate(latest.certificate)
        return certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()

    def written(self) -> bytes:
        """Return everything that the gateway wrote."""
        return self.gateway.log.read_bytes()


MINTED: Final = """
[[identities]]
name = "storage"
match = { subject_cn = ["alice", "bob", "admin", "client*", "eve"] }
credential = "minted"
client_issuer = "first-ca.pem"
issuing_ca = "issuing-1.pem"
issuing_ca_key = "issuing-1.key"

[[identities]]
name = "databases"
match = { subject_cn = "*" }
credential = "minted"
client_issuer = "second-ca.pem"
issuing_ca = "issuing-2.pem"
issuing_ca_passphrase_file = "passphrase"
issuing_ca_key = "issuing-2.key"
[log]
level = "debug"
"""


@pytest.fixture
def minted(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as running:
        yield Site(tmp_path, running, MINTED)


def test_each_client_has_its_own_names_at_the_key_managers(minted: Site) -> None:
    folder = minted.certificates.directory
    issued = {
        "alice": minted.first.issue(common_name("alice"), [x509.DNSName("alice.example.com")], path=folder / "alice"),
        "bob": minted.first.issue(common_name("bob"), path=folder / "bob"),
        "admin-1": minted.first.issue(common_name("admin"), path=folder / "admin-1"),
        "admin-2": minted.second.issue(common_name("admin"), path=folder / "admin-2"),
        "alias": minted.first.issue(common_name("alice"), [x509.DNSName("alias.example.com")], path=folder / "alias"),
    }
    minted.load(list(issued))

    seen = minted.seen()
    assert len(seen) == REQUESTS * len(issued)
    sessions: dict[tuple[int, int], str] = {}
    for each in seen:
        client = each.identifiers[0].decode().rpartition("-")[0]
        shown, own = names_of(each.certificate), names_of(issued[client])
        assert shown[1:] == own[1:]
        expected = "databases" if client == "admin-2" else "storage"
        issuer = x509.load_der_x509_certificate(each.certificate).issuer.rfc4514_string()
        assert issuer == f"CN=Issuing CA for {expected}"
        witnessed = next(index for index, it in enumerate(minted.witnesses) if each in it.seen)
        assert sessions.setdefault((witnessed, each.session), client) == client
    assert len(sessions) < len(seen) / 5  # sessions are kept
    assert PASSPHRASE.encode() not in minted.written()
    assert b"PRIVATE KEY" not in minted.written()


def test_a_minted_certificate_is_only_for_a_client(minted: Site) -> None:
    minted.first.issue(common_name("alice"), path=minted.certificates.path("alice"))
    minted.load(["alice"])
    certificate = x509.load_der_x509_certificate(minted.seen()[0].certificate)
    extensions = {type(each.value): each for each in certificate.extensions}
    assert not extensions[x509.BasicConstraints].value.ca
    assert extensions[x509.BasicConstraints].critical
    assert extensions[x509.ExtendedKeyUsage].value == x509.ExtendedKeyUsage([x509.OID_CLIENT_AUTH])
    usage = extensions[x509.KeyUsage].value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() == 14400 + 300


PASSWORDS: Final = """
[[identities]]
name = "first"
match = { subject_cn = "first" }
credential = "password"
certificate = "credential-shared.pem"
private_key = "credential-shared.key"
username = "user-of-first"
password_file = "password"
client_credential = "replace"
shared = true

[[identities]]
name = "second"
match = { subject_cn = "second" }
credential = "password"
certificate = "credential-shared.pem"
private_key = "credential-shared.key"
device = { serial_number = "serial-of-second", network_identifier = "10.1.0.7" }
password_file = "password"
shared = true

[[identities]]
name = "third"
match = { subject_cn = "third" }
credential = "password"
certificate = "credential-shared.pem"
private_key = "credential-shared.key"
username = "user-of-third"
password_file = "password"
client_credential = "pass"
shared = true
[log]
level = "debug"
"""


@pytest.fixture
def passwords(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as running:
        site = Site(tmp_path, running, PASSWORDS)
        for name in ("first", "second", "third"):
            site.first.issue(common_name(name), path=tmp_path / name)
        yield site


def of_user(name: str, password: str) -> bytes:
    """Return the Authentication of a user name and password, without its head."""
    value = ttlv.structure(Tag.CREDENTIAL_VALUE, ttlv.text(Tag.USERNAME, name), ttlv.text(Tag.PASSWORD, password))
    kind = ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.USERNAME_AND_PASSWORD)
    return ttlv.structure(Tag.CREDENTIAL, kind, value)


def test_each_identity_has_its_own_password_at_the_key_managers(passwords: Site) -> None:
    passwords.load(["first", "second", "third"])
    seen = passwords.seen()
    assert len(seen) == 3 * REQUESTS
    device = ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.DEVICE),
        ttlv.structure(
            Tag.CREDENTIAL_VALUE,
            ttlv.text(Tag.DEVICE_SERIAL_NUMBER, "serial-of-second"),
            ttlv.text(Tag.PASSWORD, PASSWORD),
            ttlv.text(Tag.NETWORK_IDENTIFIER, "10.1.0.7"),
        ),
    )
    expected = {b"first": of_user("user-of-first", PASSWORD), b"second": device}
    expected[b"third"] = of_user("user-of-third", PASSWORD)
    for each in seen:
        assert each.authentication == expected[each.identifiers[0].rpartition(b"-")[0]]
    assert len({(id(it), each.session) for it in passwords.witnesses for each in it.for_clients}) < len(seen) / 5
    # Validation and health checks carry a password, too, except for the identity that has none.
    validated = {each.authentication for it in passwords.witnesses for each in it.seen if not each.identifiers}
    assert validated == {None, *expected.values()}
    assert_unwritten(passwords)


def assert_unwritten(site: Site, written: bytes | None = None) -> None:
    """Assert that the gateway wrote no password into its log, and into its metrics or ``written``."""
    written = site.written() + (repr(site.gateway.metrics()).encode() if written is None else written)
    for secret in (PASSWORD, PASSPHRASE, "own-user", "own-password", "user-of-"):
        plain = secret.encode()
        assert not any(form in written for form in (plain, plain.hex().encode(), b64encode(plain).rstrip(b"=")))


@pytest.mark.parametrize(
    ("name", "expected"), [("first", of_user("user-of-first", PASSWORD)), ("third", of_user("own", "own-password"))]
)
def test_a_clients_own_password_is_replaced_or_passed(passwords: Site, name: str, expected: bytes) -> None:
    own = ttlv.structure(Tag.AUTHENTICATION, of_user("own", "own-password"))
    passwords.load([name], (own,))
    assert {each.authentication for each in passwords.seen()} == {expected}
    assert b"own-password" not in passwords.written()


def test_a_clients_own_password_is_refused_and_nothing_is_sent(passwords: Site) -> None:
    own = ttlv.structure(Tag.AUTHENTICATION, of_user("own", "own-password"))
    with passwords.connect("second") as client:
        refused = decode_response(client.ask(get("second-1", header=(own,))))
        assert refused.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        assert "must not carry a credential" in str(refused.items[0].message)
        assert decode_response(client.ask(get("second-2"))).items[0].status == ResultStatus.SUCCESS
    assert [each.identifiers for each in passwords.seen()] == [[b"second-2"]]
    assert b"own-password" not in passwords.written()


@pytest.mark.parametrize("version", [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)])
def test_a_batch_with_a_password_is_whole_in_each_version(passwords: Site, version: tuple[int, int]) -> None:
    asks = [
        compose.Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, f"first-{number}"), bytes([number]))
        for number in range(3)
    ]
    header = (ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 65536), ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000))
    with passwords.connect("first") as client:
        answer = decode_response(client.ask(compose.encode_request(version, asks, header=header)))
    assert [item.status for item in answer.items] == [ResultStatus.SUCCESS] * 3
    (seen,) = passwords.seen()
    whole = compose.encode_request(
        version, asks, header=(header[0], ttlv.structure(Tag.AUTHENTICATION, seen.authentication or b""), header[1])
    )
    assert seen.request.frame == whole


def test_a_request_of_the_largest_size_still_passes(passwords: Site) -> None:
    frame = get("first-" + "x" * (1024 * 1024 - 200))
    padding = 1024 * 1024 - len(frame)
    frame = get("first-" + "x" * (1024 * 1024 - 200 + padding))
    assert len(frame) == 1024 * 1024
    with passwords.connect("first") as client:
        assert decode_response(client.ask(frame)).items[0].status == ResultStatus.SUCCESS
    assert len(passwords.seen()[0].request.frame) > 1024 * 1024


# Audit trail ----------------------------------------------------------------------------------------------------------

AUDIT: Final = """
[audit]
to = "file"
file = "audit.jsonl"
on_failure = "refuse"
"""


def audited(site: Site) -> list[dict[str, Any]]:
    """Return the requests in the audit trail of a gateway, once it has ended."""
    site.gateway.process.send_signal(signal.SIGTERM)
    assert site.gateway.process.wait(30) == 0
    lines = [json.loads(line) for line in site.certificates.path("audit.jsonl").read_bytes().splitlines()]
    return [line for line in lines if line["event"] in {"request", "intent"}]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_audit_trail_names_identity_and_principal_of_minted_credentials(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    with ExitStack() as running:
        site = Site(tmp_path, running, MINTED + AUDIT)
        expected = {}
        for name, ca, identity in (
            ("admin-1", site.first, "storage"),
            ("admin-2", site.second, "databases"),
        ):
            certificate = ca.issue(common_name("admin"), path=tmp_path / name)
            issuer = ca.certificate.subject.rfc4514_string()
            expected[name] = (identity, issuer, "CN=admin", hashlib.sha256(certificate).hexdigest())
        site.load(list(expected))
        found = audited(site)
    assert len(found) == 2 * REQUESTS
    for line in found:
        name = line["items"][0]["ids"][0].rpartition("-")[0]
        assert (line["identity"], line["issuer"], line["subject"], line["certificate"]) == expected[name]
        assert (line["result"], line["policy"]) == ("success", "allowed")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_audit_trail_names_the_identity_of_a_password_and_no_password(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    own = ttlv.structure(Tag.AUTHENTICATION, of_user("own-user", "own-password"))
    with ExitStack() as running:
        site = Site(tmp_path, running, PASSWORDS + AUDIT)
        for name in ("first", "second", "third"):
            site.first.issue(common_name(name), path=tmp_path / name)
            with site.connect(name) as client:
                for header in ((own,), ()):
                    client.ask(get(f"{name}-1", header=header))
                    ask = compose.Ask(Operation.DESTROY, ttlv.text(Tag.UNIQUE_IDENTIFIER, f"{name}-1"))
                    client.ask(compose.encode_request((1, 4), [ask], header=header))
        found = audited(site)
        assert_unwritten(site, tmp_path.joinpath("audit.jsonl").read_bytes())
    requests = [line for line in found if line["event"] == "request"]
    assert [line["identity"] for line in requests] == [name for name in ("first", "second", "third") for _ in range(4)]
    assert all(line["subject"] == f"CN={line['identity']}" for line in found)
    refused = [line for line in requests if line["result"] != "success"]
    assert [(line["identity"], line["refusal"], line["tries"]) for line in refused] == [
        ("second", "client_credential", 0)
    ] * 2
    intents = [line["identity"] for line in found if line["event"] == "intent"]
    assert intents == ["first", "first", "second", "third", "third"]


# Reload ---------------------------------------------------------------------------------------------------------------

FIXED: Final = """
shared = true
certificate = "credential-shared.pem"
private_key = "credential-shared.key"
"""
OF_STORAGE: Final = """
credential = "minted"
client_issuer = "first-ca.pem"
issuing_ca = "issuing-1.pem"
issuing_ca_key = "issuing-1.key"
"""


def test_the_kind_of_a_credential_changes_under_load(minted: Site) -> None:
    for name in ("alice", "bob"):
        minted.first.issue(common_name(name), path=minted.certificates.path(name))
    with minted.loaded("alice", "bob"):
        wait_until(lambda: len(minted.seen()) > 50, "requests")
        minted.change(OF_STORAGE, FIXED)
        fixed = ("CN=shared", "CN=Key Manager Clients CA")
        wait_until(lambda: minted.shown_to("alice") == minted.shown_to("bob") == fixed, "the certificate from files")
        time.sleep(0.3)
        count = len(minted.seen())
        time.sleep(0.3)
        assert {it.certificate for it in minted.seen()[count:]} == {minted.seen()[-1].certificate}
        minted.change(FIXED, OF_STORAGE)
        wait_until(lambda: minted.shown_to("alice") == ("CN=alice", "CN=Issuing CA for storage"), "minted certificates")
        wait_until(lambda: minted.shown_to("bob") == ("CN=bob", "CN=Issuing CA for storage"), "minted certificates")


def _rules(*rules: tuple[str, str]) -> str:
    """Return a rule with a credential from files for each pair of a rule's name and its client's."""
    return "".join(
        f"""
[[identities]]
name = "{name}"
match = {{ subject_cn = "{client}" }}
certificate = "credential-{client}.pem"
private_key = "credential-{client}.key"
"""
        for name, client in rules
    )


def test_clients_that_change_places_never_show_the_credential_of_the_other(tmp_path: Path) -> None:
    before, swapped = _rules(("red", "alice"), ("blue", "bob")), _rules(("red", "bob"), ("blue", "alice"))
    renamed = _rules(("red-2", "bob"), ("blue-2", "alice"))
    with ExitStack() as running:
        site = Site(tmp_path, running, before)
        for name in ("alice", "bob"):
            site.first.issue(common_name(name), path=tmp_path / name)
        with site.loaded("alice", "bob"):
            wait_until(lambda: len(site.seen()) > 100, "requests")
            site.change(before, swapped, outcome=b"another credential while other clients may come to this rule")
            wait_until(lambda: len(site.seen()) > 200, "requests")
            site.change(swapped, renamed)
            count = len(site.seen())
            wait_until(lambda: len(site.seen()) > count + 200, "requests")
        for each in site.seen():
            subject = x509.load_der_x509_certificate(each.certificate).subject.rfc4514_string()
            assert subject == f"CN={each.identifiers[0].decode().partition('-')[0]}"


def test_another_issuing_ca_replaces_the_sessions_under_load(minted: Site) -> None:
    for name in ("alice", "bob"):
        minted.first.issue(common_name(name), path=minted.certificates.path(name))
    with minted.loaded("alice", "bob"):
        wait_until(lambda: len(minted.seen()) > 50, "requests")
        minted.spare.write(minted.certificates.path("issuing-1"))
        minted.reload()
        for name in ("alice", "bob"):
            wait_until(lambda: minted.shown_to(name) == (f"CN={name}", "CN=Spare CA"), "the other CA")  # noqa: B023
    assert minted.gateway.total("kmip_gateway_minted_credentials") == 2


def test_another_password_is_used_after_a_reload(passwords: Site) -> None:
    with passwords.loaded("first"):
        wait_until(lambda: len(passwords.seen()) > 20, "requests")
        write_secret(passwords.certificates.path("password"), "another-" + PASSWORD)
        passwords.reload()
        expected = of_user("user-of-first", "another-" + PASSWORD)
        wait_until(lambda: passwords.seen()[-1].authentication == expected, "the other password")
    assert_unwritten(passwords)


def test_few_principals_are_kept_and_none_is_mistaken(tmp_path: Path) -> None:
    with ExitStack() as running:
        site = Site(tmp_path, running, MINTED + "[pool]\nmax_principals = 2\n")
        names = [f"client{number}" for number in range(6)]
        for name in names:
            site.first.issue(common_name(name), path=tmp_path / name)
        site.load(names)
        for each in site.seen():
            subject = x509.load_der_x509_certificate(each.certificate).subject.rfc4514_string()
            assert subject == f"CN={each.identifiers[0].decode().partition('-')[0]}"
        assert site.gateway.total("kmip_gateway_minted_credentials") <= 6
        site.load(names[:1])
        assert site.gateway.total("kmip_gateway_minted_credentials") <= 2


def test_a_client_that_the_ca_does_not_permit_is_refused_with_a_line(minted: Site) -> None:
    constraints = x509.NameConstraints([x509.DNSName("storage.example.com")], None)
    Ca.make("Constrained CA", constraints=constraints).write(minted.certificates.path("issuing-1"))
    minted.reload()
    minted.first.issue(common_name("eve"), [x509.DNSName("eve.example.org")], path=minted.certificates.path("eve"))
    with minted.connect("eve") as client:
        answer = decode_response(client.ask(get("eve-1")))
    assert answer.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
    assert b"CN=Constrained CA does not permit the names of the client's certificate" in minted.written()
    assert minted.seen() == []


def test_a_password_goes_with_its_kind_of_credential(passwords: Site) -> None:
    settings = 'username = "user-of-first"\npassword_file = "password"\nclient_credential = "replace"\n'
    kind = 'match = { subject_cn = "first" }\ncredential = "password"\n'
    with passwords.loaded("first", "second"):
        wait_until(lambda: len(passwords.seen()) > 20, "requests")
        path = passwords.certificates.path(f"gateway-{passwords.gateway.port}.toml")
        path.write_text(path.read_text().replace(settings, "", 1))
        passwords.change(kind, kind.replace("password", "fixed"))
        time.sleep(0.2)
        count = len(passwords.seen())
        time.sleep(0.2)
    later = passwords.seen()[count:]
    of_first = {it.authentication for it in later if it.identifiers[0].startswith(b"first")}
    of_second = {it.authentication for it in later if it.identifiers[0].startswith(b"second")}
    assert of_first == {None}
    assert len(of_second) == 1
    assert None not in of_second
