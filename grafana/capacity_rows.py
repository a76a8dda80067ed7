"""The rows of the second dashboard: how near the gateways and the key managers are to their limits, and since when."""

from typing import Final

from grafana.panel_types import BACKEND, OWN, RATE, Panel, Query, Row, above

_NEAR: Final = above(0.7, 0.9)
_BY: Final = "instance, backend"


def _used(title: str, part: str, whole: str, text: str, legend: str) -> Panel:
    return Panel(title, "percentunit", text, [Query(f"{part} / {whole}", legend)], "bargauge", _NEAR)


def _week(title: str, part: str, whole: str, text: str, legend: str) -> Panel:
    """Return a panel of the highest share in each hour, to see a trend over days."""
    return Panel(title, "percentunit", text, [Query(f"max_over_time(({part} / {whole})[1h:1m])", legend)], steps=_NEAR)


_SESSIONS: Final = (
    f'sum by ({_BY}) (kmip_gateway_sessions{{{BACKEND},state="busy"}})',
    f"sum by ({_BY}) (kmip_gateway_sessions_max{{{BACKEND}}})",
)
_ALL_SESSIONS: Final = (f"sum by ({_BY}) (kmip_gateway_sessions{{{BACKEND}}})", _SESSIONS[1])
_CLIENTS: Final = (f"kmip_gateway_clients{{{OWN}}}", f"kmip_gateway_clients_max{{{OWN}}}")
_LISTENER: Final = (f"kmip_gateway_client_connections{{{OWN}}}", f"kmip_gateway_client_connections_max{{{OWN}}}")
_HALF_OPEN: Final = (
    f"sum by (instance) (kmip_gateway_client_half_open_connections{{{OWN}}})",
    f"sum by (instance) (kmip_gateway_client_half_open_connections_max{{{OWN}}})",
)
_REQUESTS: Final = (f"kmip_gateway_requests_in_flight{{{OWN}}}", f"kmip_gateway_requests_max{{{OWN}}}")
_MEMORY: Final = (f"kmip_gateway_memory_buffered_bytes{{{OWN}}}", f"kmip_gateway_memory_budget_bytes{{{OWN}}}")
_DESCRIPTORS: Final = (f"process_open_fds{{{OWN}}}", f"process_max_fds{{{OWN}}}")

ROWS: Final = [
    Row(
        "Used now, of each limit",
        [
            _used(
                "Busy sessions",
                *_SESSIONS,
                "Of `backends.max_sessions`. Above 90 % requests wait: raise it if the key manager's license and"
                " memory allow it, or add a key manager.",
                "{{instance}} {{backend}}",
            ),
            _used(
                "Open sessions",
                *_ALL_SESSIONS,
                "Of `backends.max_sessions`, idle ones among them. At 100 % identities take sessions from each other.",
                "{{instance}} {{backend}}",
            ),
            _used(
                "Clients",
                *_CLIENTS,
                "Of `limits.max_clients`. Beyond it, clients get an error: raise it, with the limit of descriptors,"
                " or add a gateway.",
                "{{instance}}",
            ),
            _used(
                "Clients of a listener",
                *_LISTENER,
                "Of `listeners.max_clients`. Beyond it, clients get an error: raise it, or add a gateway.",
                "{{instance}} {{listener}}",
            ),
            _used(
                "Half-open connections",
                *_HALF_OPEN,
                "Of `limits.max_half_open`. Beyond it, the oldest are closed: a flood, or more clients at once than the"
                " processor can take.",
                "{{instance}}",
            ),
            _used(
                "Requests in flight",
                *_REQUESTS,
                "Of `limits.max_requests`. Near it, key managers are too slow for the load.",
                "{{instance}}",
            ),
            _used(
                "Memory for messages",
                *_MEMORY,
                "Of `limits.max_buffered`. Near it, clients do not read their answers, or messages are large: raise"
                " it if there is memory.",
                "{{instance}}",
            ),
            _used(
                "File descriptors",
                *_DESCRIPTORS,
                "Of the process's limit. Above 80 %: raise `LimitNOFILE=`.",
                "{{instance}}",
            ),
            Panel(
                "Processor of the core",
                "percentunit",
                "Of one processor, which is all that the core can use. Above 70 %: add TLS workers, or a gateway"
                " (docs/scaling.md).",
                [Query(f"rate(process_cpu_seconds_total{{{OWN}}}{RATE})", "{{instance}}")],
                "bargauge",
                _NEAR,
            ),
            Panel(
                "Processor of TLS workers",
                "percentunit",
                "Of one processor each. Above 70 %: add TLS workers, if there are processors, or a gateway. Empty"
                " without TLS workers.",
                [
                    Query(
                        f"sum by (instance, worker) (rate(kmip_gateway_worker_cpu_seconds_total{{{OWN}}}{RATE}))",
                        "{{instance}} {{worker}}",
                    )
                ],
                "bargauge",
                _NEAR,
            ),
        ],
        per_line=5,
    ),
    Row(
        "Highest in each hour",
        [
            _week(
                "Busy sessions",
                *_SESSIONS,
                "The trend: if the line reaches 90 % before your next order of key managers, order now.",
                "{{instance}} {{backend}}",
            ),
            _week(
                "Clients", *_CLIENTS, "The trend towards `limits.max_clients`: raise it before 90 %.", "{{instance}}"
            ),
            _week(
                "Requests in flight",
                *_REQUESTS,
                "The trend towards `limits.max_requests`. Peaks are moments in which key managers did not answer.",
                "{{instance}}",
            ),
            _week(
                "Memory for messages",
                *_MEMORY,
                "The trend towards `limits.max_buffered`. Peaks are moments in which answers were not read.",
                "{{instance}}",
            ),
            _week(
                "File descriptors",
                *_DESCRIPTORS,
                "The trend towards the limit of the process: raise it before 80 %.",
                "{{instance}}",
            ),
            Panel(
                "Requests for each second of processor time",
                "short",
                "The cost of a request, in the core and in TLS workers together. A fall after an update: please"
                " report it; otherwise more handshakes, or larger messages. Multiply by the processors that are left"
                " for the load that still fits.",
                [
                    Query(
                        f"sum by (instance) (rate(kmip_gateway_requests_total{{{OWN}}}{RATE}))"
                        f" / (sum by (instance) (rate(process_cpu_seconds_total{{{OWN}}}{RATE}))"
                        f" + (sum by (instance) (rate(kmip_gateway_worker_cpu_seconds_total{{{OWN}}}{RATE}))"
                        f" or 0 * sum by (instance) (rate(process_cpu_seconds_total{{{OWN}}}{RATE}))))",
                        "{{instance}}",
                    )
                ],
            ),
        ],
    ),
]
