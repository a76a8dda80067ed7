"""Build the dashboard and the alerts: ``python -m grafana.build`` writes all their files.

Tests compare the files with the results of this program. A row is a title and its panels, a panel a title, a unit and
its queries.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from grafana.alerts import operator_rules, rules, runbook

HERE: Final = Path(__file__).parent
_SELECTOR: Final = 'job=~"$job",instance=~"$instance"'
_BACKEND: Final = f'{_SELECTOR},backend=~"$backend"'
_RATE: Final = "[$__rate_interval]"


class Query(NamedTuple):
    """A PromQL expression, and the legend of its series as a template of labels."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """A panel of a row; ``kind`` is a Grafana panel type, ``unit`` a Grafana unit."""

    title: str
    unit: str
    queries: list[Query]
    kind: str = "timeseries"
    description: str = ""


def rate(metric: str, by: str, selector: str = _SELECTOR) -> Query:
    """Return a query for the rate of a counter, summed by the label ``by``."""
    return Query(f"sum by ({by}) (rate({metric}{{{selector}}}{_RATE}))", f"{{{{{by}}}}}")


def quantiles(histogram: str, selector: str = _SELECTOR) -> list[Query]:
    """Return queries for the median and the 99th percentile of a histogram."""
    return [
        Query(f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{{{selector}}}{_RATE})))", f"p{100 * q:g}")
        for q in (0.5, 0.99)
    ]


def total(metric: str, selector: str = _SELECTOR) -> str:
    """Return the expression for the sum of a gauge over its series."""
    return f"sum({metric}{{{selector}}})"


ROWS: Final[list[tuple[str, list[Panel]]]] = [
    (
        "Headline",
        [
            Panel(
                "Requests",
                "reqps",
                [Query(f"sum(rate(kmip_gateway_requests_total{{{_SELECTOR}}}{_RATE}))", "")],
                "stat",
            ),
            Panel(
                "Answered by backends",
                "percentunit",
                [
                    Query(
                        f"sum(rate(kmip_gateway_requests_total{{{_SELECTOR},"
                        f'result!~"gateway_error|client_disconnected"}}{_RATE}))'
                        f" / sum(rate(kmip_gateway_requests_total{{{_SELECTOR},"
                        f'result!="client_disconnected"}}{_RATE}))',
                        "",
                    )
                ],
                "stat",
                "The rest are errors that the gateway itself answered. Abandoned requests are not counted.",
            ),
            Panel("Duration, p99", "s", quantiles("kmip_gateway_request_duration_seconds")[1:], "stat"),
            Panel("Client connections", "short", [Query(total("kmip_gateway_client_connections"), "")], "stat"),
            Panel("Backends up", "short", [Query(total("kmip_gateway_backend_up"), "")], "stat"),
            Panel(
                "Next certificate expires in",
                "s",
                [Query(f"min(kmip_gateway_certificate_not_after_timestamp_seconds{{{_SELECTOR}}}) - time()", "")],
                "stat",
            ),
        ],
    ),
    (
        "Traffic",
        [
            Panel("Requests by operation", "reqps", [rate("kmip_gateway_requests_total", "operation")]),
            Panel("Requests by result", "reqps", [rate("kmip_gateway_requests_total", "result")]),
            Panel(
                "Errors of the gateway itself, by reason", "reqps", [rate("kmip_gateway_local_errors_total", "reason")]
            ),
            Panel(
                "Operations refused by policy, by identity",
                "reqps",
                [rate("kmip_gateway_policy_refusals_total", "identity")],
            ),
            Panel("Failed operations by Result Reason", "reqps", [rate("kmip_gateway_result_reasons_total", "reason")]),
            Panel("Request duration", "s", quantiles("kmip_gateway_request_duration_seconds")),
            Panel(
                "Requests in flight",
                "short",
                [
                    Query(total("kmip_gateway_requests_in_flight"), "requests"),
                    Query(total("kmip_gateway_requests_max"), "max"),
                ],
            ),
            Panel(
                "Answers of the gateway itself, by operation",
                "reqps",
                [rate("kmip_gateway_local_answers_total", "operation")],
            ),
        ],
    ),
    (
        "Identities",
        [
            Panel("Requests by identity", "reqps", [rate("kmip_gateway_identity_requests_total", "identity")]),
            Panel(
                "Errors of the gateway itself, by identity",
                "reqps",
                [rate("kmip_gateway_local_errors_total", "identity")],
            ),
            Panel(
                "Key managers that can serve the identity",
                "short",
                [Query(f"sum by (identity) (kmip_gateway_backend_identity_up{{{_SELECTOR}}})", "{{identity}}")],
                description="At 0, the clients of the identity get errors: look at its failures to open a session.",
            ),
            Panel(
                "Failures to open a session, by identity",
                "ops",
                [rate("kmip_gateway_session_open_failures_total", "identity", _BACKEND)],
            ),
            Panel("Rejected because of a limit", "ops", [rate("kmip_gateway_limit_rejections_total", "identity")]),
            Panel(
                "Request duration, p99, by identity",
                "s",
                [
                    Query(
                        "histogram_quantile(0.99, sum by (le, identity)"
                        f" (rate(kmip_gateway_identity_request_duration_seconds_bucket{{{_SELECTOR}}}{_RATE})))",
                        "{{identity}}",
                    )
                ],
            ),
            Panel(
                "Open connections by identity",
                "short",
                [Query(f"sum by (identity) (kmip_gateway_identity_connections{{{_SELECTOR}}})", "{{identity}}")],
            ),
            Panel("Bytes of requests", "Bps", [rate("kmip_gateway_client_received_bytes_total", "identity")]),
            Panel("Bytes of answers", "Bps", [rate("kmip_gateway_client_sent_bytes_total", "identity")]),
        ],
    ),
    (
        "Pools",
        [
            Panel(
                "Sessions by state",
                "short",
                [
                    Query(f"sum by (state) (kmip_gateway_sessions{{{_BACKEND}}})", "{{state}}"),
                    Query(total("kmip_gateway_sessions_max", _BACKEND), "max"),
                ],
            ),
            Panel(
                "Requests waiting for a session",
                "short",
                [Query(f"sum by (backend) (kmip_gateway_pool_waiters{{{_BACKEND}}})", "{{backend}}")],
            ),
            Panel(
                "Longest wait for a session, now",
                "s",
                [Query(f"max by (backend) (kmip_gateway_pool_oldest_waiter_seconds{{{_BACKEND}}})", "{{backend}}")],
            ),
            Panel("Waits for a session", "s", quantiles("kmip_gateway_request_queue_duration_seconds", _BACKEND)),
            Panel(
                "Requests on sessions that were open before",
                "percentunit",
                [
                    Query(
                        f"sum by (backend) (rate(kmip_gateway_session_reuses_total{{{_BACKEND}}}{_RATE}))"
                        f" / sum by (backend) (rate(kmip_gateway_backend_requests_total{{{_BACKEND}}}{_RATE}))",
                        "{{backend}}",
                    )
                ],
            ),
            Panel(
                "Stale sessions, found at checkout or in flight",
                "ops",
                [rate("kmip_gateway_session_stale_total", "when", _BACKEND)],
            ),
            Panel(
                "Sessions opened by backend", "ops", [rate("kmip_gateway_sessions_opened_total", "backend", _BACKEND)]
            ),
            Panel(
                "Clients with minted certificates, and certificates minted a second",
                "short",
                [
                    Query(f"sum(kmip_gateway_minted_credentials{{{_SELECTOR}}})", "clients"),
                    rate("kmip_gateway_certificates_minted_total", "result"),
                ],
            ),
            Panel("Sessions closed by reason", "ops", [rate("kmip_gateway_sessions_closed_total", "reason", _BACKEND)]),
            Panel(
                "Failures to open a session, by reason",
                "ops",
                [rate("kmip_gateway_session_open_failures_total", "reason", _BACKEND)],
            ),
            Panel(
                "Idle limit of sessions",
                "s",
                [Query(f"kmip_gateway_session_idle_limit_seconds{{{_BACKEND}}}", "{{backend}} {{source}}")],
            ),
            Panel("Time to open a session", "s", quantiles("kmip_gateway_session_open_duration_seconds", _BACKEND)),
        ],
    ),
    (
        "Backends",
        [
            Panel("Up", "short", [Query(f"kmip_gateway_backend_up{{{_BACKEND}}}", "{{backend}}")], "state-timeline"),
            Panel(
                "State",
                "short",
                [Query(f"kmip_gateway_backend_state{{{_BACKEND}}} == 1", "{{backend}} {{state}}")],
                "state-timeline",
            ),
            Panel("State changes", "ops", [rate("kmip_gateway_backend_state_changes_total", "state", _BACKEND)]),
            Panel("Ejections", "ops", [rate("kmip_gateway_backend_ejections_total", "backend", _BACKEND)]),
            Panel(
                "Health checks by result", "ops", [rate("kmip_gateway_backend_health_checks_total", "result", _BACKEND)]
            ),
            Panel(
                "Duration of health checks",
                "s",
                quantiles("kmip_gateway_backend_health_check_duration_seconds", _BACKEND),
            ),
            Panel("Retries by reason", "reqps", [rate("kmip_gateway_retries_total", "reason")]),
            Panel("Retries by outcome", "reqps", [rate("kmip_gateway_retries_total", "outcome")]),
            Panel(
                "Weights",
                "short",
                [Query(f"kmip_gateway_backend_weight{{{_BACKEND}}}", "{{backend}}")],
            ),
            Panel(
                "Time since the last successful health check",
                "s",
                [
                    Query(
                        f"time() - kmip_gateway_backend_last_health_check_success_timestamp_seconds{{{_BACKEND}}}",
                        "{{backend}}",
                    )
                ],
            ),
            Panel(
                "Lookups of names by result", "ops", [rate("kmip_gateway_dns_resolutions_total", "result", _BACKEND)]
            ),
            Panel("Retries denied, by reason", "reqps", [rate("kmip_gateway_retries_denied_total", "reason")]),
            Panel("Fallback lookups by result", "reqps", [rate("kmip_gateway_fallback_lookups_total", "result")]),
            Panel(
                "Clients with affinity to a backend",
                "short",
                [Query(total("kmip_gateway_affinity_clients"), "clients")],
            ),
            Panel("Requests by backend", "reqps", [rate("kmip_gateway_backend_requests_total", "backend", _BACKEND)]),
            Panel(
                "Requests to backends by result",
                "reqps",
                [rate("kmip_gateway_backend_requests_total", "result", _BACKEND)],
            ),
            Panel(
                "Duration of answered requests to backends",
                "s",
                quantiles("kmip_gateway_backend_request_duration_seconds", _BACKEND),
            ),
        ],
    ),
    (
        "Clients",
        [
            Panel(
                "TLS handshakes, full (false) and resumed (true)",
                "ops",
                [rate("kmip_gateway_client_handshakes_total", "resumed")],
            ),
            Panel("TLS handshakes by version", "ops", [rate("kmip_gateway_client_handshakes_total", "tls_version")]),
            Panel(
                "Connections rejected or cut off, by reason",
                "ops",
                [rate("kmip_gateway_client_connection_errors_total", "reason")],
            ),
            Panel("Rejected because of a limit", "ops", [rate("kmip_gateway_limit_rejections_total", "limit")]),
            Panel(
                "Half-open connections",
                "short",
                [
                    Query(f"kmip_gateway_client_half_open_connections{{{_SELECTOR}}}", "{{instance}} {{listener}}"),
                    Query(f"kmip_gateway_client_half_open_connections_max{{{_SELECTOR}}}", "{{instance}} max"),
                ],
            ),
            Panel(
                "Clients, of all listeners",
                "short",
                [Query(total("kmip_gateway_clients"), "clients"), Query(total("kmip_gateway_clients_max"), "max")],
            ),
            Panel(
                "Most clients by listener",
                "short",
                [Query(f"kmip_gateway_client_connections_max{{{_SELECTOR}}}", "{{instance}} {{listener}}")],
            ),
            Panel("Duration of connections", "s", quantiles("kmip_gateway_client_connection_duration_seconds")),
            Panel("Requests whose client left, by phase", "reqps", [rate("kmip_gateway_client_aborts_total", "phase")]),
            Panel("Duration of TLS handshakes", "s", quantiles("kmip_gateway_client_handshake_duration_seconds")),
            Panel(
                "Time until a CRL becomes stale",
                "s",
                [
                    Query(
                        f"kmip_gateway_crl_next_update_timestamp_seconds{{{_SELECTOR}}} - time()",
                        "{{role}} {{name}} {{issuer}}",
                    )
                ],
                description="Far below zero if a CA has no CRL although client_crl or crl is set.",
            ),
            Panel(
                "Entries of CRLs",
                "short",
                [Query(f"kmip_gateway_crl_revoked_certificates{{{_SELECTOR}}}", "{{role}} {{name}} {{issuer}}")],
            ),
            Panel("Requests per connection", "short", quantiles("kmip_gateway_client_requests_per_connection")),
        ],
    ),
    (
        "Process",
        [
            Panel(
                "CPU", "percentunit", [Query(f"rate(process_cpu_seconds_total{{{_SELECTOR}}}{_RATE})", "{{instance}}")]
            ),
            Panel("Memory", "bytes", [Query(f"process_resident_memory_bytes{{{_SELECTOR}}}", "{{instance}}")]),
            Panel("Open descriptors", "short", [Query(f"process_open_fds{{{_SELECTOR}}}", "{{instance}}")]),
            Panel(
                "Requests and answers held",
                "bytes",
                [
                    Query(f"kmip_gateway_memory_buffered_bytes{{{_SELECTOR}}}", "{{instance}}"),
                    Query(f"kmip_gateway_memory_budget_bytes{{{_SELECTOR}}}", "{{instance}} max"),
                ],
            ),
            Panel(
                "Connections waiting for their turn",
                "short",
                [Query(f"kmip_gateway_client_connections_queued{{{_SELECTOR}}}", "{{instance}}")],
            ),
            Panel(
                "Log messages dropped",
                "short",
                [Query(f"rate(kmip_gateway_log_messages_dropped_total{{{_SELECTOR}}}{_RATE})", "{{instance}}")],
            ),
            Panel(
                "Audit trail: lines",
                "short",
                [
                    Query(f"rate(kmip_gateway_audit_lines_total{{{_SELECTOR}}}{_RATE})", "{{instance}} written"),
                    Query(f"rate(kmip_gateway_audit_records_lost_total{{{_SELECTOR}}}{_RATE})", "{{instance}} lost"),
                ],
            ),
            Panel(
                "Audit trail: bytes queued, and failing",
                "short",
                [
                    Query(f"kmip_gateway_audit_queued_bytes{{{_SELECTOR}}}", "{{instance}} queued"),
                    Query(f"kmip_gateway_audit_failing{{{_SELECTOR}}}", "{{instance}} failing"),
                ],
            ),
            Panel(
                "Reloads of the configuration",
                "short",
                [Query(f"increase(kmip_gateway_config_reloads_total{{{_SELECTOR}}}[1h])", "{{instance}} {{result}}")],
            ),
            Panel(
                "Age of the configuration",
                "s",
                [
                    Query(
                        f"time() - kmip_gateway_config_last_reload_success_timestamp_seconds{{{_SELECTOR}}}",
                        "{{instance}}",
                    )
                ],
            ),
            Panel(
                "Last reload succeeded",
                "short",
                [Query(f"kmip_gateway_config_last_reload_successful{{{_SELECTOR}}}", "{{instance}}")],
            ),
            Panel(
                "Configuration file in use",
                "short",
                [Query(f"kmip_gateway_config_info{{{_SELECTOR}}}", "{{instance}} {{sha256}}")],
            ),
            Panel("Delay of the event loop", "s", quantiles("kmip_gateway_event_loop_lag_seconds")),
            Panel("TLS workers", "short", [Query(f"kmip_gateway_workers{{{_SELECTOR}}}", "{{instance}}")]),
            Panel("TLS workers started again", "ops", [rate("kmip_gateway_worker_restarts_total", "worker")]),
            Panel("CPU by TLS worker", "percentunit", [rate("kmip_gateway_worker_cpu_seconds_total", "worker")]),
            Panel(
                "Memory by TLS worker",
                "bytes",
                [Query(f"kmip_gateway_worker_resident_memory_bytes{{{_SELECTOR}}}", "{{instance}} {{worker}}")],
            ),
            Panel(
                "Open descriptors by TLS worker",
                "short",
                [Query(f"kmip_gateway_worker_open_fds{{{_SELECTOR}}}", "{{instance}} {{worker}}")],
            ),
            Panel("Draining", "short", [Query(f"kmip_gateway_draining{{{_SELECTOR}}}", "{{instance}}")]),
            Panel(
                "Accepting connections",
                "short",
                [Query(f"kmip_gateway_accepting{{{_SELECTOR}}}", "{{instance}} {{listener}}")],
            ),
            Panel("Version", "short", [Query(f"kmip_gateway_build_info{{{_SELECTOR}}}", "{{version}}")], "stat"),
        ],
    ),
]

_PER_LINE: Final = {"stat": 6}  # panels in a line; three of every other kind
_WIDTH: Final = 24


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            _place({"type": "row", "title": title, "collapsed": False, "panels": []}, len(panels), 0, top, _WIDTH, 1)
        )
        top += 1
        per_line = _PER_LINE.get(row[0].kind, 3)
        height = 4 if row[0].kind == "stat" else 8
        width = _WIDTH // per_line
        for index, panel in enumerate(row):
            left, line = index % per_line * width, index // per_line
            panels.append(_place(_panel(panel), len(panels), left, top + line * height, width, height))
        top += -(-len(row) // per_line) * height
    return {
        "uid": "kmip-gateway",
        "title": "KMIP gateway",
        "tags": ["kmip-gateway"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query.expression, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }


def _place(panel: dict[str, Any], index: int, left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return panel | {"id": index + 1, "gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    queries = {
        "job": "label_values(kmip_gateway_build_info, job)",
        "instance": 'label_values(kmip_gateway_build_info{job=~"$job"}, instance)',
        "backend": f"label_values(kmip_gateway_backend_up{{{_SELECTOR}}}, backend)",
    }
    return [source] + [
        {
            "name": name,
            "type": "query",
            "query": query,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
        }
        for name, query in queries.items()
    ]


def rendered() -> str:
    """Return the text of the dashboard's file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def files() -> dict[Path, str]:
    """Return the text of every file that is made here."""
    root = HERE.parent
    return {
        HERE / "dashboards" / "kmip-gateway.json": rendered(),
        HERE / "alerts" / "kmip-gateway.rules.yml": rules(),
        root / "config" / "kubernetes" / "monitoring" / "prometheus-rule.yaml": operator_rules(),
        root / "docs" / "alerts.md": runbook(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
