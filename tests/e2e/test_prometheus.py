"""A real Prometheus scrapes a real gateway under load and faults: panels return data, and alerts fire.

With DASHBOARD_VALUES=FILE, the values of all panels are written to that file (``make dashboard-values``).
"""

import os
import random
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.tools.requests import create_key, destroy, discover_versions, get_key

from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.spec import Operation
from grafana.alerts import GROUPS, every_alert, rules
from grafana.dashboards import ANNOTATIONS, DASHBOARDS
from grafana.panel_types import Panel, Query
from tests.kit.ledger import Ledger
from tests.kit.load import Caller, Keys
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)
from tests.kit.prometheus import PROMETHEUS, Prometheus, running_prometheus
from tests.kit.resuming import context_of, read_response, session
from tests.kit.revocation import crl_of
from tests.kit.worker_processes import workers_of

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed: apt-get install prometheus")

SETTINGS: Final = """
hosts = ["localhost"]
[audit]
to = "file"
[health]
interval = 0.3
timeout = 1
fall = 2
rise = 1
[pool]
queue_timeout = 1
[failover]
try_timeout = 0.5
consecutive_failures = 1
[replication]
mode = "async"
[balancing]
resolve_interval = 1
[deadlines]
request = 3
connect = 1
"""
SECONDS: Final = 9.0  # of load
KEYS: Final = frozenset({Operation.GET, Operation.CREATE})  # health checks meet no fault, so that requests do
REFUSES_UNWANTED: Final = FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"unwanted"}))
IDLE_CLOSE: Final = FaultSetting(Fault.IDLE_CLOSE, seconds=0.6)  # longer than the time between two health checks
#: Queries without data in this run, as title of the panel, or name of the alert, with the reason.
NO_DATA: Final = {
    "KmipGatewayMissing": "the gateway is there: absent() returns nothing",
    "KmipGatewayNameLookupFailing": "the name is always found",
    "Minted certificates": "no identity has certificates minted",
}
VALUES: Final = Path(os.environ["DASHBOARD_VALUES"]) if "DASHBOARD_VALUES" in os.environ else None
_WINDOW: Final = re.compile(r"\[\d+[smh]\]")


@dataclass
class Run:
    """The gateway, its key managers, and the Prometheus that has watched them."""

    gateway: Gateway
    key_managers: list[KeyManagerProcess]
    prometheus: Prometheus


class Values(NamedTuple):
    """The series that Prometheus returns for a query of a panel; ``row`` has the title of the dashboard, too."""

    row: str
    panel: Panel
    query: Query
    found: list[dict[str, Any]]


def shortened() -> str:
    """Return the rules with alerts that fire at once."""
    return rules([group._replace(alerts=[each._replace(hold="") for each in group.alerts]) for group in GROUPS])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    certificates = Certificates(tmp_path_factory.mktemp("prometheus"))
    soon = datetime.now(UTC) + timedelta(hours=20)
    certificates.kms_clients_ca.issue_client("ending", not_after=soon).write(*certificates.pair("credential-ending"))
    certificates.path("clients.crl").write_bytes(crl_of(certificates.clients_ca))
    identities = [
        Identity("welcome", '{ subject_cn = "welcome-*" }', credential="ending", policy='refuse = ["Destroy"]'),
        Identity("unwanted", '{ subject_cn = "unwanted-*" }', credential="unwanted"),
        Identity("limited", '{ subject_cn = "limited" }', credential="ending", policy="requests_per_second = 1"),
    ]
    settings = GatewaySettings(
        [],
        identities,
        listener='client_crl = "clients.crl"',
        backend="max_sessions = 8",
        extra=SETTINGS,
        tls_workers=2,
    )
    with running_key_manager_processes(certificates, ["kms-1", "kms-2"]) as key_managers:
        for each in key_managers:
            each.set_faults(REFUSES_UNWANTED)
        settings.backends = [key_managers[0].port, f"localhost:{key_managers[1].port}"]
        with running_gateway(certificates, settings) as gateway:
            wait_until(lambda: gateway.total("kmip_gateway_backend_up") == 2, "both key managers")
            with running_prometheus(certificates.directory, gateway, shortened()) as prometheus:
                yield Run(gateway, key_managers, prometheus)


# Load and faults ---------------------------------------------------------------------------------------------------


async def exercise(run: Run) -> list[Values]:
    """Let clients do what they do, well and badly, while key managers fail. Return the values of all panels then."""
    ledger, keys = Ledger(), Keys("welcome")
    callers = [Caller(run.gateway, f"welcome-{number}", keys, ledger, patience=20) for number in range(4)]
    unwanted = Caller(run.gateway, "unwanted-1", Keys("unwanted"), ledger, patience=20)
    async with callers[0].session() as client:
        await callers[0].create(client)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(use, caller, keys, stop)
        nursery.start_soon(use, unwanted, Keys("unwanted"), stop)
        nursery.start_soon(partial(trio.to_thread.run_sync, misbehave, run.gateway))
        await trio.sleep(SECONDS / 3)
        for key_manager in run.key_managers:
            hang_up = FaultSetting(Fault.HANG_UP, operations=KEYS)
            for fault in (hang_up, FaultSetting(Fault.SLOW, seconds=0.8, operations=KEYS)):
                key_manager.set_faults(REFUSES_UNWANTED, IDLE_CLOSE, fault)
                await trio.sleep(SECONDS / 6)
            key_manager.set_faults(REFUSES_UNWANTED)
        values = await trio.to_thread.run_sync(values_of_panels, run.prometheus)
        stop.set()
    return values


async def use(caller: Caller, keys: Keys, stop: trio.Event) -> None:
    """Create and get keys, over sessions of some requests; some of the keys do not exist."""
    rng = random.Random(0)
    while not stop.is_set():
        async with caller.session() as client:
            for _ in range(10):
                await caller.create(client) if rng.random() < 0.2 or not keys.uids else await caller.get(
                    client, rng.choice([*keys.uids, "nobody-has-this"])
                )
                await trio.sleep(0.03)
                if stop.is_set():
                    break


def misbehave(gateway: Gateway) -> None:
    """Resume sessions, speak no TLS, ask for too much, leave early, and reload, well and badly."""
    context = context_of(gateway, "welcome-9", "TLSv1.3")
    kept = None
    batch = encode_request((1, 2), [Ask(Operation.QUERY, unique_batch_item_id=bytes([index])) for index in range(3)])
    single = (discover_versions([(1, 2)]), destroy("refused"), get_key("nobody-has-this"), get_key("nobody"))
    for request in (*single, batch):
        with session(gateway, context, kept) as talking:
            talking.sendall(request)
            read_response(talking)
            kept = talking.session
    limited = context_of(gateway, "limited", "TLSv1.2")
    with session(gateway, limited) as talking:
        for _ in range(5):
            talking.sendall(create_key())
            read_response(talking)
    stranger = context_of(gateway, "stranger", "TLSv1.3")
    for _ in range(3):
        with suppress(OSError), session(gateway, stranger) as talking:
            talking.sendall(get_key("x"))
            read_response(talking)
        with socket.create_connection((gateway.address.host, gateway.address.port), timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with session(gateway, context, kept) as talking:
            talking.sendall(get_key("x")[:20])  # and leaves in the middle of the request
    config = gateway.certificates.path(f"gateway-{gateway.port}.toml")
    good = config.read_text()
    reload(gateway, good.replace("max_sessions = 8", "max_sessions = 9"), "success")
    reload(gateway, f"{good}nonsense = 1", "failure")
    config.write_text(good)
    worker = workers_of(gateway)[0]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: gateway.total("kmip_gateway_worker_restarts_total") == 1, "another worker")


def reload(gateway: Gateway, text: str, result: str) -> None:
    """Reload a changed configuration, and wait for the result."""
    reloads = partial(gateway.total, "kmip_gateway_config_reloads_total", result=result)
    before = reloads()
    gateway.certificates.path(f"gateway-{gateway.port}.toml").write_text(text)
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: reloads() > before, f"a reload with the result {result}")


# Expressions -------------------------------------------------------------------------------------------------------


def runnable(expression: str) -> str:
    """Return an expression of a dashboard with its variables filled in, and with windows that the run has filled."""
    expression = expression.replace("$__rate_interval", "30s").replace("[1h:1m]", "[30s:1s]")
    return re.sub(r"\$[a-z]+", ".*", _WINDOW.sub("[30s]", expression))


def values_of_panels(prometheus: Prometheus) -> list[Values]:
    """Return what Prometheus returns for all queries of all panels."""
    return [
        Values(f"{dashboard.title}, {row.title}", panel, query, prometheus.query(runnable(query.expression)))
        for dashboard in DASHBOARDS
        for row in dashboard.rows
        for panel in row.panels
        for query in panel.queries
    ]


async def test_a_fresh_gateway_fires_only_what_is_wrong(run: Run) -> None:
    await trio.sleep(3)  # some evaluations
    expected = {f"KmipGatewayCertificateEndsIn{time}" for time in ("14Days", "7Days", "1Day")}
    expected |= {"KmipGatewayCredentialRefused", "KmipGatewayIdentityCutOff"}

    assert set(run.prometheus.firing()) <= expected


async def test_every_expression_returns_data(run: Run) -> None:
    values = await exercise(run)
    if VALUES is not None:
        VALUES.write_text(table(values))
    missing = {each.panel.title for each in values if not each.found}
    missing |= {one.name for one in ANNOTATIONS if not run.prometheus.query(runnable(one.expression))}
    missing |= {one.name for one in every_alert() if not run.prometheus.query(runnable(one.value))}

    print("without data:", ", ".join(sorted(missing)))
    assert missing == set(NO_DATA)


def test_alerts_fire_for_a_refused_credential_and_a_certificate(run: Run) -> None:
    firing = run.prometheus.firing()

    assert {each["backend"] for each in firing["KmipGatewayCredentialRefused"]} == {"kms-1", "kms-2"}
    for name in ("14Days", "7Days", "1Day"):
        ending = firing[f"KmipGatewayCertificateEndsIn{name}"]
        assert {(each["role"], each["name"]) for each in ending} == {
            ("backend_client", "welcome"),
            ("backend_client", "limited"),
        }
    assert "KmipGatewayBackendDown" not in firing
    assert "KmipGatewayNoBackend" not in firing
    assert {each["identity"] for each in firing["KmipGatewayIdentityCutOff"]} == {"unwanted"}
    summaries = {each["annotations"]["summary"] for each in run.prometheus.alerts()}
    assert any(text.startswith("backend_client certificate of welcome ends in 19h") for text in summaries), summaries


def test_an_alert_fires_for_a_killed_worker(run: Run) -> None:
    assert "KmipGatewayWorkerRestarted" in run.prometheus.firing()


def test_alerts_fire_for_killed_key_managers(run: Run) -> None:
    run.key_managers[0].kill()
    wait_until(lambda: "KmipGatewayRedundancyLost" in run.prometheus.firing(), "KmipGatewayRedundancyLost")
    assert [each["backend"] for each in run.prometheus.firing()["KmipGatewayBackendDown"]] == ["kms-1"]
    assert "KmipGatewayNoBackend" not in run.prometheus.firing()

    run.key_managers[1].kill()
    wait_until(lambda: "KmipGatewayNoBackend" in run.prometheus.firing(), "KmipGatewayNoBackend")


# The table of values -----------------------------------------------------------------------------------------------

_MOST: Final = 3  # series of a query in the table
_HIDDEN: Final = frozenset({"job", "instance", "__name__"})
_HEAD: Final = """\
# Values on the dashboards

The values that a real Prometheus returned for each query of each panel, in a run of `tests/e2e/test_prometheus.py`: a
gateway with two TLS workers and three identities, two key managers that fail requests for a while and refuse the
credential of the identity `unwanted`, reloads, and a TLS worker that is killed. `make dashboard-values` writes it.
"""


def table(values: list[Values]) -> str:
    """Return docs/dashboard-values.md."""
    text, before = [_HEAD], ""
    for row, panel, query, found in values:
        if row != before:
            text.append(f"\n## {row}\n\n| panel | series | values |\n|---|---|---|\n")
            before = row
        unit = "short" if panel.kind == "heatmap" else panel.unit  # a heatmap's values are numbers of requests
        shown = ", ".join(_value(series, unit) for series in found[:_MOST])
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        legend = f" ({query.legend})" if query.legend and len(panel.queries) > 1 else ""
        reason = "" if found else NO_DATA.get(panel.title, "")
        text.append(f"| {panel.title}{legend} | {len(found)} | {shown}{more}{reason} |\n")
    return "".join(text)


def _value(series: dict[str, Any], unit: str) -> str:
    labels = " ".join(value for name, value in sorted(series["metric"].items()) if name not in _HIDDEN)
    number = float(series["value"][1])
    shown = f"{100 * number:.1f} %" if unit == "percentunit" else f"{number:.4g} {_UNITS.get(unit, '')}".strip()
    return f"{labels}: {shown}" if labels else shown


_UNITS: Final = {"reqps": "/s", "ops": "/s", "s": "s", "bytes": "bytes", "Bps": "bytes/s"}
