"""Cases for ``promtool test rules``: for each alert, series with which it fires, and series with which it is silent.

Series have a value a minute, in promtool's notation: ``0+5x20`` begins at 0 and grows by 5, twenty times.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

TARGET: Final = {"job": "kmip-gateway", "instance": "gw-1:9696"}
_OWN: Final = 'job="kmip-gateway",instance="gw-1:9696"'


def series(metric: str, labels: str = "") -> str:
    """Return the name of a series of the gateway under test; ``labels`` are further ones."""
    return f"{metric}{{{_OWN}{',' if labels else ''}{labels}}}"


def own(metric: str, labels: str = "") -> str:
    """Return the same for a metric of the gateway's own."""
    return series(f"kmip_gateway_{metric}", labels)


class Firing(NamedTuple):
    """An alert that must fire: its labels besides those of the target, and its value as the summary shows it."""

    labels: Mapping[str, str] = {}
    value: str = ""
    has_target: bool = True


class Case(NamedTuple):
    """Series, and the alerts of one name that fire with them after ``at`` minutes."""

    at: int
    series: Mapping[str, str]
    fires: Sequence[Firing] = ()


def _burn(at: int, often: str) -> list[Case]:
    """Return cases of a burn rate: errors all the time, long ago, few in number, and of the client's own making."""
    served = own("requests_total", 'operation="Get",result="success",protocol_version="1.2"')
    erred = own("local_errors_total", 'reason="no_backend"')
    refused = own("local_errors_total", 'reason="not_permitted"')
    overloaded = own("local_errors_total", 'reason="overloaded"')
    limited = own("limit_rejections_total", 'limit="requests_per_second"')
    return [
        Case(at, {served: f"0+100x{at}", erred: f"0+5x{at}"}, [Firing(value=often)]),
        Case(at, {served: f"0+100x{at}", erred: f"0+5x{at - 40} {5 * (at - 40)}+0x40"}),
        Case(at, {served: f"0+0.1x{at}", erred: f"0x{at - 9} 1+0x3 2+0x10"}),
        Case(at, {served: f"0+100x{at}", refused: f"0+90x{at}"}),
        Case(at, {served: f"0+100x{at}", overloaded: f"0+90x{at}", limited: f"0+90x{at}"}),
        Case(at, {served: f"0+100x{at}"}),
        Case(at, {served: f"0x{at}", erred: f"0x{at}"}),
    ]


def _certificate(limit_days: float) -> list[Case]:
    ends = own("certificate_not_after_timestamp_seconds", 'role="backend_client",name="app-1"')
    labels = {"role": "backend_client", "name": "app-1"}
    return [
        Case(120, {ends: f"{int(7200 + limit_days * 86400 - 5400)}x120"}, [Firing(labels, _duration(limit_days))]),
        Case(120, {ends: f"{int(7200 + limit_days * 86400 + 600)}x120"}),
    ]


def _duration(days: float) -> str:
    return f"{int(days) - 1}d 22h 30m 0s" if days > 1 else "22h 30m 0s"


_UP, _STATE = own("backend_up", 'backend="kms-1"'), 'backend="kms-1",state='
_UP_2 = own("backend_up", 'backend="kms-2"')
_LATENCY = 'operation="Get",le='
_CRL = own("crl_next_update_timestamp_seconds", 'role="client",name="kmip",issuer="CN=Clients CA"')
_CRL_LABELS = {"role": "client", "name": "kmip", "issuer": "CN=Clients CA"}


def _slow(le_1: str, le_5: str) -> dict[str, str]:
    return {
        own("request_duration_seconds_bucket", f'{_LATENCY}"1.0"'): le_1,
        own("request_duration_seconds_bucket", f'{_LATENCY}"5.0"'): le_5,
        own("request_duration_seconds_bucket", f'{_LATENCY}"+Inf"'): le_5,
        own("request_duration_seconds_count", 'operation="Get"'): le_5,
    }


def _handshakes(full: str, resumed: str) -> dict[str, str]:
    labels = 'listener="kmip",tls_version="TLSv1.3",resumed='
    return {
        own("client_handshakes_total", f'{labels}"false"'): full,
        own("client_handshakes_total", f'{labels}"true"'): resumed,
    }


def _identity_up(identity: str, backend: str = "kms-1") -> str:
    return own("backend_identity_up", f'backend="{backend}",identity="{identity}"')


def _identity_errors(reason: str, requests: str, errors: str) -> dict[str, str]:
    return {
        own("identity_requests_total", 'identity="app-1",result="success"'): requests,
        own("local_errors_total", f'reason="{reason}",identity="app-1"'): errors,
    }


def _shares(first: str, second: str, weight: int = 1) -> dict[str, str]:
    return {
        own("backend_requests_total", 'backend="kms-1",result="answered"'): first,
        own("backend_requests_total", 'backend="kms-2",result="answered"'): second,
        own("backend_weight", 'backend="kms-1"'): f"{weight}x80",
        own("backend_weight", 'backend="kms-2"'): "1x80",
    }


def _stale(stale: str, reuses: str) -> dict[str, str]:
    return {
        own("session_stale_total", 'backend="kms-1",when="in_flight"'): stale,
        own("session_stale_total", 'backend="kms-1",when="checkout"'): "0+50x40",
        own("session_reuses_total", 'backend="kms-1"'): reuses,
    }


def _lag(below_10_ms: str, below_250_ms: str) -> dict[str, str]:
    return {
        own("event_loop_lag_seconds_bucket", f'process="core",le="{bound}"'): values
        for bound, values in (("0.01", below_10_ms), ("0.25", below_250_ms), ("+Inf", below_250_ms))
    }


_LIMITED: Final = own("limit_rejections_total", 'limit="max_clients",identity="app-1"')


def _near(part: str, whole: str, labels: str = "", *, listener: str = "") -> list[Case]:
    """Return cases of a gauge that is near its limit, and far from it."""
    firing = Firing({"listener": listener} if listener else {}, "85%")
    return [
        Case(20, {own(part, labels): "85x30", own(whole, labels): "100x30"}, [firing]),
        Case(20, {own(part, labels): "70x30", own(whole, labels): "100x30"}),
    ]


CASES: Final[dict[str, list[Case]]] = {
    "KmipGatewayNoBackend": [
        Case(5, {_UP: "1 0x9", _UP_2: "1 0x9"}, [Firing()]),
        Case(5, {_UP: "0x9", _UP_2: "1x9"}),
        Case(1, {_UP: "1 0x9"}),
    ],
    "KmipGatewayBackendDown": [
        Case(9, {own("backend_state", f'{_STATE}"down"'): "0 0 1x9"}, [Firing({"backend": "kms-1"})]),
        Case(
            9,
            {
                own("backend_state", f'{_STATE}"ejected"'): "0 0 1 0 1 0 1 0 1 0 1",
                own("backend_state", f'{_STATE}"half_open"'): "0 0 0 1 0 1 0 1 0 1 0",
            },
            [Firing({"backend": "kms-1"})],
        ),
        Case(9, {own("backend_state", f'{_STATE}"down"'): "0 0 1 1 1 0x9"}),
        Case(
            9, {own("backend_state", f'{_STATE}"standby"'): "1x20", own("backend_state", f'{_STATE}"drained"'): "1x9"}
        ),
    ],
    "KmipGatewayRedundancyLost": [
        Case(
            20,
            {
                _UP: "1x30",
                _UP_2: "0x30",
                own("backend_state", f'{_STATE}"up"'): "1x30",
                own("backend_state", 'backend="kms-2",state="up"'): "0x30",
            },
            [Firing()],
        ),
        Case(20, {_UP: "1x30", own("backend_state", f'{_STATE}"up"'): "1x30"}),
        Case(
            20,
            {
                _UP: "1x30",
                _UP_2: "0x30",
                own("backend_state", f'{_STATE}"up"'): "1x30",
                own("backend_state", 'backend="kms-2",state="standby"'): "1x30",
            },
        ),
    ],
    "KmipGatewayBackendFlapping": [
        Case(15, {own("backend_state_changes_total", f'{_STATE}"up"'): "1+1x20"}, [Firing({"backend": "kms-1"})]),
        Case(15, {own("backend_state_changes_total", f'{_STATE}"up"'): "1 1 1 1 1 2 2 2 2 2 3x9"}),
    ],
    "KmipGatewayWrongAnswers": [
        Case(
            5,
            {own("sessions_closed_total", 'backend="kms-1",reason="mismatch"'): "0 0 1x9"},
            [Firing({"backend": "kms-1"})],
        ),
        Case(5, {own("sessions_closed_total", 'backend="kms-1",reason="idle"'): "0+9x20"}),
    ],
    "KmipGatewayCredentialRefused": [
        Case(
            9,
            {own("session_open_failures_total", 'backend="kms-1",identity="app-1",reason="credential"'): "0+2x20"},
            [Firing({"backend": "kms-1", "identity": "app-1"})],
        ),
        Case(9, {own("session_open_failures_total", 'backend="kms-1",identity="app-1",reason="connect"'): "0+2x20"}),
        Case(
            7,
            {
                own(
                    "session_open_failures_total", 'backend="kms-1",identity="app-1",reason="credential"'
                ): "0 0 0 4 9+0x9"
            },
        ),
    ],
    "KmipGatewayIdentityCutOff": [
        Case(
            5,
            {_UP: "1x9", _identity_up("app-1"): "1 0x9", _identity_up("app-2"): "1x9"},
            [Firing({"identity": "app-1"})],
        ),
        Case(5, {_UP: "1x9", _identity_up("app-1"): "0x9", _identity_up("app-1", "kms-2"): "1x9"}),
        Case(5, {_UP: "0x9", _identity_up("app-1"): "0x9"}),
    ],
    "KmipGatewayIdentityErrors": [
        Case(30, _identity_errors("no_backend", "0+100x40", "0+10x40"), [Firing({"identity": "app-1"}, "10%")]),
        Case(30, _identity_errors("not_permitted", "0+100x40", "0+10x40")),
        Case(30, _identity_errors("no_backend", "0+1000x40", "0+10x40")),
        Case(30, _identity_errors("no_backend", "0+1x40", "0+0.5x40")),
        Case(25, _identity_errors("no_backend", "0+100x40", "0x14 0 90 90+0x20")),
    ],
    "KmipGatewayErrorsFast": _burn(70, "5%"),
    "KmipGatewayErrorsSlow": _burn(370, "5%"),
    "KmipGatewaySlow": [
        Case(30, _slow("0+900x40", "0+1000x40"), [Firing(value="4.6s")]),
        Case(30, _slow("0+1000x40", "0+1000x40")),
        Case(30, _slow("0x40", "0+1x40")),
    ],
    "KmipGatewayRetryBudgetExhausted": [
        Case(20, {own("retries_denied_total", 'reason="budget"'): "0+1x30"}, [Firing()]),
        Case(20, {own("retries_denied_total", 'reason="unsafe"'): "0+9x30"}),
        Case(20, {own("retries_denied_total", 'reason="budget"'): "0x14 5 9+0x20"}),
    ],
    "KmipGatewayLimitReached": [
        Case(
            20,
            {_LIMITED: "0+1x30"},
            [Firing({"limit": "max_clients", "identity": "app-1"})],
        ),
        Case(20, {_LIMITED: "0x10 5+0x30"}),
        Case(20, {_LIMITED: "0x14 5 9+0x30"}),
    ],
    "KmipGatewayPoolSaturated": [
        Case(
            20,
            {
                own("sessions", f'{_STATE}"busy"'): "61x30",
                own("sessions", f'{_STATE}"idle"'): "0x30",
                own("sessions_max", 'backend="kms-1"'): "64x30",
            },
            [Firing({"backend": "kms-1"}, "95.31%")],
        ),
        Case(
            20,
            {
                own("sessions", f'{_STATE}"busy"'): "50x30",
                own("sessions", f'{_STATE}"idle"'): "14x30",
                own("sessions_max", 'backend="kms-1"'): "64x30",
            },
        ),
    ],
    "KmipGatewayClientsRefused": [
        Case(
            30,
            {own("client_connection_errors_total", 'listener="kmip",reason="expired"'): "0+1x40"},
            [Firing({"reason": "expired"})],
        ),
        Case(25, {own("client_connection_errors_total", 'listener="kmip",reason="expired"'): "0x20 2+0x30"}),
        Case(25, {own("client_connection_errors_total", 'listener="kmip",reason="client_closed"'): "0+100x30"}),
        Case(23, {own("client_connection_errors_total", 'listener="kmip",reason="expired"'): "0x12 9 20+0x30"}),
    ],
    "KmipGatewayResumptionCollapsed": [
        Case(140, _handshakes("0+10x70 700+80x80", "0+80x70 5600+10x80"), [Firing(value="11.11%")]),
        Case(140, _handshakes("0+10x150", "0+80x150")),
        Case(140, _handshakes("0x150", "0x150")),
    ],
    "KmipGatewayCertificateEndsIn14Days": _certificate(14),
    "KmipGatewayCertificateEndsIn7Days": _certificate(7),
    "KmipGatewayCertificateEndsIn1Day": _certificate(1),
    "KmipGatewayCrlStale": [
        Case(20, {_CRL: "600x30"}, [Firing(_CRL_LABELS)]),
        Case(20, {_CRL: "0x30"}, [Firing(_CRL_LABELS)]),
        Case(20, {_CRL: "90000x30"}),
    ],
    "KmipGatewayCrlEndsSoon": [
        Case(20, {_CRL: "15600x30"}, [Firing(_CRL_LABELS, "4h 0m 0s")]),
        Case(20, {_CRL: "600x30"}),
        Case(20, {_CRL: "90000x30"}),
    ],
    "KmipGatewayScrapeFailing": [
        Case(9, {series("up"): "1 0x20"}, [Firing()]),
        Case(9, {'up{job="other",instance="other"}': "0x20"}),
        Case(9, {series("up"): "1x20"}),
    ],
    "KmipGatewayMissing": [
        Case(9, {'up{job="other",instance="other"}': "1x20"}, [Firing(has_target=False)]),
        Case(9, {series("up"): "0x20"}),
    ],
    "KmipGatewayRestarting": [
        Case(20, {series("process_start_time_seconds"): "0 0 0 1 1 2 2 2 3x20"}, [Firing()]),
        Case(20, {series("process_start_time_seconds"): "0 0 0 1x30"}),
    ],
    "KmipGatewayConfigReloadFailed": [
        Case(9, {own("config_last_reload_successful"): "1 1 0x20"}, [Firing()]),
        Case(9, {own("config_last_reload_successful"): "1 0 1x20"}),
    ],
    "KmipGatewayDescriptorsNearLimit": [
        Case(
            20, {series("process_open_fds"): "900x30", series("process_max_fds"): "1024x30"}, [Firing(value="87.89%")]
        ),
        Case(20, {series("process_open_fds"): "500x30", series("process_max_fds"): "1024x30"}),
    ],
    "KmipGatewayLogMessagesDropped": [
        Case(9, {own("log_messages_dropped_total"): "0 0 7x20"}, [Firing()]),
        Case(9, {own("log_messages_dropped_total"): "0x20"}),
    ],
    "KmipGatewayTrafficImbalance": [
        Case(70, _shares("0+900x80", "0+100x80"), [Firing(value="1.8")]),
        Case(70, _shares("0+900x80", "0+100x80", weight=9)),
        Case(70, _shares("0+900x80", "0x80")),
        Case(70, _shares("0+9x80", "0+1x80")),
    ],
    "KmipGatewayNameLookupFailing": [
        Case(
            20,
            {own("dns_resolutions_total", 'backend="kms-1",result="failure"'): "0+2x30"},
            [Firing({"backend": "kms-1"})],
        ),
        Case(20, {own("dns_resolutions_total", 'backend="kms-1",result="success"'): "0+2x30"}),
    ],
    "KmipGatewayRequestsWait": [
        Case(5, {own("pool_oldest_waiter_seconds", 'backend="kms-1"'): "0 2x9"}, [Firing({"backend": "kms-1"}, "2s")]),
        Case(5, {own("pool_oldest_waiter_seconds", 'backend="kms-1"'): "0 2 0 2 0 2 0 2"}),
    ],
    "KmipGatewayStaleSessions": [
        Case(40, _stale("0+10x50", "0+200x50"), [Firing({"backend": "kms-1"}, "5%")]),
        Case(40, _stale("0+1x50", "0+200x50")),
        Case(40, _stale("0+1x50", "0+2x50")),
    ],
    "KmipGatewayClientsNearLimit": _near("clients", "clients_max"),
    "KmipGatewayListenerNearLimit": _near(
        "client_connections", "client_connections_max", 'listener="kmip"', listener="kmip"
    ),
    "KmipGatewayMemoryNearLimit": _near("memory_buffered_bytes", "memory_budget_bytes"),
    "KmipGatewayConfigDiffers": [
        Case(
            40,
            {
                own("config_info", 'sha256="aa"'): "1x50",
                'kmip_gateway_config_info{job="kmip-gateway",instance="gw-2:9696",sha256="bb"}': "1x50",
            },
            [Firing({"job": "kmip-gateway"}, "2", has_target=False)],
        ),
        Case(
            40,
            {
                own("config_info", 'sha256="aa"'): "1x50",
                'kmip_gateway_config_info{job="kmip-gateway",instance="gw-2:9696",sha256="aa"}': "1x50",
            },
        ),
    ],
    "KmipGatewayWorkerRestarted": [
        Case(9, {own("worker_restarts_total", 'worker="1"'): "0 0 1x20"}, [Firing()]),
        Case(9, {own("worker_restarts_total", 'worker="1"'): "0x20"}),
    ],
    "KmipGatewayEventLoopLag": [
        Case(30, _lag("0+90x40", "0+100x40"), [Firing({"process": "core"}, "226ms")]),
        Case(30, _lag("0+100x40", "0+100x40")),
    ],
    "KmipGatewayAuditFailing": [
        Case(9, {own("audit_failing"): "0 1x20"}, [Firing()]),
        Case(9, {own("audit_failing"): "0x20"}),
    ],
    "KmipGatewayAuditRecordsLost": [
        Case(9, {own("audit_records_lost_total"): "0 0 3x20"}, [Firing()]),
        Case(9, {own("audit_records_lost_total"): "0x20"}),
    ],
}
