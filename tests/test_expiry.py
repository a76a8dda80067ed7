"""Expiry: what ends soon, or has ended, is in the metrics and in the log."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from gateway import expiry
from gateway.config import load
from gateway.config.crls import read_crls
from gateway.expiry import ExpiryWatch
from gateway.metrics import Metrics
from gateway.revocation import Trust, TrustInUse
from tests.kit.fake_backends import in_virtual_time
from tests.kit.processes import HOSTS, Certificates, GatewaySettings, Identity, lapsed_identity, write_config
from tests.kit.revocation import DAY, HOUR, TestCa


@dataclass
class Watched:
    """A watch, its log, and the files that it watches."""

    watch: ExpiryWatch
    log: LogCapture
    metrics: Metrics
    certificates: Certificates

    def lines(self) -> list[tuple[str, object, object]]:
        """Return and forget the lines: the first words of the event, and the two fields that tell lines apart."""
        found = [
            (entry["event"].partition(":")[0], entry.get("role", entry.get("identity")), entry.get("days"))
            for entry in self.log.entries
        ]
        self.log.entries.clear()
        return found


def watched(certificates: Certificates, *identities: Identity, trusts: list[TrustInUse] | None = None) -> Watched:
    settings = GatewaySettings([5696], identities or [Identity("everyone")])
    config = load(write_config(certificates, settings, 5697, 5698))
    metrics, log = Metrics("test"), LogCapture()
    logger = structlog.wrap_logger(None, processors=[log])
    return Watched(ExpiryWatch(config, lambda: trusts or [], metrics, logger), log, metrics, certificates)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def issue_server(certificates: Certificates, lasts: timedelta) -> None:
    ends = datetime.now(UTC) + lasts
    issued = certificates.gateway_ca.issue_server("gateway", HOSTS, not_before=ends - 2 * DAY, not_after=ends)
    issued.write(*certificates.pair("server"))


def test_certificates_that_last_are_only_in_the_metrics(certificates: Certificates) -> None:
    it = watched(certificates)
    it.watch.note(it.watch.read())
    assert it.lines() == []
    (family,) = it.metrics.certificate_not_after.collect()
    assert {sample.labels["role"] for sample in family.samples} == {
        "listener",
        "client_ca",
        "backend_client",
        "backend_ca",
    }
    assert repr(it.watch) == "<ExpiryWatch of 4 files>"


@pytest.mark.parametrize(("lasts", "days"), [(29.5 * DAY, 29), (1.5 * DAY, 1), (HOUR, 0)])
def test_a_certificate_that_ends_soon_is_a_warning(certificates: Certificates, lasts: timedelta, days: int) -> None:
    it = watched(certificates)
    issue_server(certificates, lasts)
    it.watch.note(it.watch.read())
    assert it.log.entries[0]["log_level"] == "warning"
    assert it.log.entries[0]["file"].endswith("server.pem")
    assert it.lines() == [("certificate ends soon", "listener", days)]


def test_an_intermediate_that_ends_soon_counts(certificates: Certificates) -> None:
    it = watched(certificates)
    server, _key = certificates.pair("server")
    server.write_bytes(server.read_bytes() + TestCa("Intermediate", lasts=DAY).pem)
    it.watch.note(it.watch.read())
    assert [line[:2] for line in it.lines()] == [("certificate ends soon", "listener")]


def test_a_ca_that_was_renewed_counts_once(certificates: Certificates) -> None:
    it = watched(certificates)
    bundle = certificates.path("clients_ca.pem")
    bundle.write_bytes(TestCa("Clients CA", lasts=-DAY).pem + bundle.read_bytes())
    it.watch.note(it.watch.read())
    assert it.lines() == []


def test_an_expired_certificate_is_an_error(certificates: Certificates) -> None:
    it = watched(certificates, lapsed_identity(certificates), Identity("everyone"))
    issue_server(certificates, HOUR - DAY)
    it.watch.note(it.watch.read())
    assert {entry["log_level"] for entry in it.log.entries} == {"error"}
    assert it.lines() == [
        ("certificate has expired", "listener", -1),
        ("own certificate is not valid", "lapsed", None),
    ]


@in_virtual_time
async def test_lines_come_back_at_each_limit_and_once_a_day(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = watched(certificates)
    issue_server(certificates, 30 * DAY + HOUR)
    began = trio.current_time()
    start = datetime.now(UTC).timestamp()
    clock = SimpleNamespace(time=lambda: start + trio.current_time() - began)
    monkeypatch.setattr(expiry, "time", clock)  # other threads of this process read the clock, too
    monkeypatch.setattr(expiry, "_LOOK_EVERY", 600.0)
    it.watch.note(it.watch.read())
    assert it.lines() == []
    with trio.move_on_after(31.5 * DAY.total_seconds()):
        await it.watch.run()
    lines = it.lines()
    warned = [days for event, _role, days in lines if event == "certificate ends soon"]
    assert {29, 28, 15, 7, 6, 1, 0} <= set(warned)
    assert 30 <= len(warned) <= 34
    assert len([line for line in lines if line[0] == "certificate has expired"]) in {1, 2, 3}


def crl_lines(it: Watched) -> list[tuple[str, str]]:
    return [(entry["log_level"], entry["event"].partition(":")[0]) for entry in it.log.entries]


@pytest.mark.parametrize(
    ("begins", "lasts", "expected"),
    [
        (-HOUR, 10 * HOUR, []),
        (-9 * HOUR, HOUR, [("warning", "CRL becomes stale soon")]),
        (-9 * HOUR, -HOUR, [("error", "CRL is stale")]),
        (HOUR, 2 * HOUR, [("error", "CRL is stale")]),
    ],
)
def test_a_crl_is_warned_of_and_in_the_metrics(
    certificates: Certificates, begins: timedelta, lasts: timedelta, expected: list[tuple[str, str]]
) -> None:
    authority = TestCa("Clients")
    path = certificates.path("clients.crl")
    path.write_bytes(authority.crl_pem([1, 2, 3], begins=begins, lasts=lasts))
    lists = read_crls([path], [authority.certificate], path)
    it = watched(
        certificates, trusts=[TrustInUse("client", "kmip", Trust([authority.certificate], lists, accepts_stale=True))]
    )
    it.watch.note(it.watch.read())
    assert crl_lines(it) == expected
    sample = it.metrics.registry.get_sample_value
    labels = {"role": "client", "name": "kmip", "issuer": "CN=Clients"}
    assert sample("kmip_gateway_crl_next_update_timestamp_seconds", labels) == lists[0].ends
    assert sample("kmip_gateway_crl_revoked_certificates", labels) == 3


def test_a_ca_without_a_crl_is_warned_of(certificates: Certificates) -> None:
    authority = TestCa("Clients")
    it = watched(
        certificates, trusts=[TrustInUse("client", "kmip", Trust([authority.certificate], [], accepts_stale=False))]
    )
    it.watch.note(it.watch.read())
    assert crl_lines(it) == [("warning", "no CRL of a CA")]
    assert "are refused" in it.log.entries[0]["detail"]
    labels = {"role": "client", "name": "kmip", "issuer": "CN=Clients"}
    assert it.metrics.registry.get_sample_value("kmip_gateway_crl_next_update_timestamp_seconds", labels) == 0
