"""The rows of the first dashboard about TLS, clients, the process and the audit trail."""

from typing import Final

from grafana.panel_types import OWN, RATE, Panel, Query, Row, above, below, quantiles, rate, total

_DAY: Final = 86400

TLS: Final = Row(
    "TLS",
    [
        Panel(
            "Handshakes, full and resumed",
            "ops",
            "Full handshakes cost ten times the processor time of resumed ones. If resumed ones vanish, a balancer"
            " has begun to spread a client's connections, or the listener's certificate has changed.",
            [
                rate("client_handshakes_total", "resumed", f'{OWN},resumed="false"', "full"),
                rate("client_handshakes_total", "resumed", f'{OWN},resumed="true"', "resumed"),
            ],
            stacked=True,
        ),
        Panel(
            "Share of resumed handshakes",
            "percentunit",
            "Clients that connect often should resume. A sudden fall: see the panel before this.",
            [
                Query(
                    f'sum(rate(kmip_gateway_client_handshakes_total{{{OWN},resumed="true"}}{RATE}))'
                    f" / sum(rate(kmip_gateway_client_handshakes_total{{{OWN}}}{RATE}))",
                    "resumed",
                )
            ],
        ),
        Panel(
            "Handshakes by version",
            "ops",
            'TLS versions of clients. Versions before TLSv1.2 appear with `tls_policy = "legacy"` only: update these'
            " clients.",
            [rate("client_handshakes_total", "tls_version")],
        ),
        Panel(
            "Duration of handshakes",
            "s",
            "From accepting a client to its finished handshake, the network's time among it. Above a second with near"
            " clients: the gateway lacks processor time; add TLS workers or gateways.",
            quantiles("client_handshake_duration_seconds"),
            steps=above(0.5, 1),
        ),
        Panel(
            "Connections rejected or cut off, by reason",
            "ops",
            "expired, revoked, unknown_ca, not_authenticated: a client's certificate; the log names it."
            " handshake_timeout, not_tls: scanners, or health checks of a balancer. limit: see Rejected because of a"
            " limit.",
            [rate("client_connection_errors_total", "reason")],
        ),
        Panel(
            "Age of ticket keys",
            "s",
            "Since the start, or since a reload changed the listener's certificate, key or CA; then clients shake hands"
            " in full once. A fall that you have not made: the gateway has restarted. Above 90 days: the keys protect"
            " the recorded TLS 1.2 sessions of a long time; restart the gateway, or renew the listener's certificate.",
            [Query(f"kmip_gateway_tls_ticket_key_age_seconds{{{OWN}}}", "{{instance}} {{listener}}")],
            steps=above(90 * _DAY, 365 * _DAY),
        ),
        Panel(
            "Certificates end in",
            "s",
            "Each certificate in use: renew it before its time is up. role is the use: listener, client_ca,"
            " backend_client (name is the identity), backend_ca, admin.",
            [
                Query(
                    f"sort(kmip_gateway_certificate_not_after_timestamp_seconds{{{OWN}}} - time())",
                    "{{instance}} {{role}} {{name}}",
                )
            ],
            "table",
            below(7 * _DAY, 14 * _DAY),
        ),
        Panel(
            "Time until a CRL becomes stale",
            "s",
            "Below 0 the CRL is stale, and far below if a CA has none: clients are refused (`crl_stale`). Fetch the"
            " current one. Empty if no CRL is configured.",
            [
                Query(
                    f"kmip_gateway_crl_next_update_timestamp_seconds{{{OWN}}} - time()",
                    "{{instance}} {{role}} {{name}} {{issuer}}",
                )
            ],
            steps=below(0, 6 * 3600),
        ),
        Panel(
            "Entries of CRLs",
            "short",
            "Revoked certificates of each CA. A fall to 0 is a CRL of the wrong CA, or an empty file.",
            [Query(f"kmip_gateway_crl_revoked_certificates{{{OWN}}}", "{{instance}} {{role}} {{name}} {{issuer}}")],
        ),
    ],
)

CLIENTS: Final = Row(
    "Clients",
    [
        Panel(
            "Connections by listener",
            "short",
            "Open connections, and the limit of each listener. At the limit, further clients get an error.",
            [
                total("client_connections", by="listener"),
                total("client_connections_max", by="listener", legend="{{listener}} max"),
            ],
        ),
        Panel(
            "Half-open connections",
            "short",
            "Connections whose TLS handshake is not finished. Many at once: a flood, or all clients connect again"
            " after a restart. Near max, the oldest are closed.",
            [
                total("client_half_open_connections", by="listener"),
                total("client_half_open_connections_max", legend="max of all listeners"),
            ],
        ),
        Panel(
            "Rejected because of a limit",
            "ops",
            "A client beyond its limit, or a limit that is too low; the log names the client. docs/operations.md says"
            " which setting each limit is.",
            [rate("limit_rejections_total", "limit, identity")],
        ),
        Panel(
            "Requests whose client left",
            "reqps",
            "queued, sent: clients give up before the answer; raise their timeout, or find out why answers take so"
            " long. reading, sending: broken connections.",
            [rate("client_aborts_total", "phase")],
        ),
        Panel(
            "Requests per connection",
            "short",
            "A median of 1 is clients that connect for each request: let them keep their connection, which saves most"
            " of the processor time.",
            quantiles("client_requests_per_connection"),
        ),
        Panel(
            "Duration of connections",
            "s",
            "From the handshake to the end. Short connections cost a handshake each.",
            quantiles("client_connection_duration_seconds"),
        ),
        Panel(
            "Clients, of all listeners",
            "short",
            "Clients that are served, and `limits.max_clients`.",
            [total("clients", legend="clients"), total("clients_max", legend="max")],
        ),
        Panel(
            "Clients with affinity to a backend",
            "short",
            "Clients that stay on one key manager for a while because they changed something. It falls to 0 after"
            " `read_your_writes_window`.",
            [total("affinity_clients", legend="clients")],
        ),
        Panel(
            "Accepting connections",
            "short",
            "0: new connections are refused, because no key manager can be reached, or because the gateway drains.",
            [Query(f"kmip_gateway_accepting{{{OWN}}}", "{{instance}} {{listener}}")],
            "state-timeline",
            names=((0, "refusing", "red"), (1, "accepting", "green")),
        ),
    ],
)

PROCESS: Final = Row(
    "Process",
    [
        Panel(
            "CPU",
            "percentunit",
            "Processors in use: 100 % is one of them. The core and each TLS worker can use one. Near 100 %: add TLS"
            " workers (docs/scaling.md) or a gateway. One worker far above the others: the connections of few"
            " clients.",
            [
                Query(f"rate(process_cpu_seconds_total{{{OWN}}}{RATE})", "{{instance}} core"),
                rate("worker_cpu_seconds_total", "instance, worker"),
            ],
            steps=above(0.7, 0.9),
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident memory. A steady climb over days without more clients: please report it.",
            [
                Query(f"process_resident_memory_bytes{{{OWN}}}", "{{instance}} core"),
                Query(f"kmip_gateway_worker_resident_memory_bytes{{{OWN}}}", "{{instance}} {{worker}}"),
            ],
        ),
        Panel(
            "Open descriptors",
            "short",
            "Every client and every session takes one. Near max: raise `LimitNOFILE=`, or lower `limits.max_clients`.",
            [
                Query(f"process_open_fds{{{OWN}}}", "{{instance}} core"),
                Query(f"process_max_fds{{{OWN}}}", "{{instance}} max"),
                Query(f"kmip_gateway_worker_open_fds{{{OWN}}}", "{{instance}} {{worker}}"),
            ],
        ),
        Panel(
            "Delay of the event loop",
            "s",
            "Every request waits as long. A 99th percentile above 0.1 s: the process has too little of a processor.",
            quantiles("event_loop_lag_seconds"),
            steps=above(0.05, 0.1),
        ),
        Panel(
            "Connections waiting for their turn",
            "short",
            "Connections with unread data. Above 0 for long: the processor is the limit.",
            [total("client_connections_queued", by="instance")],
        ),
        Panel(
            "Requests and answers held",
            "bytes",
            "Bytes of messages in memory, and `limits.max_buffered`. Near max, requests get errors: a client does not"
            " read its answers, or key managers hang.",
            [
                total("memory_buffered_bytes", by="instance"),
                total("memory_budget_bytes", by="instance", legend="{{instance}} max"),
            ],
        ),
        Panel(
            "TLS workers",
            "short",
            "Workers that run; during `deadlines.retire` after a reload, replaced ones, too. Empty without TLS"
            " workers.",
            [total("workers", by="instance")],
        ),
        Panel(
            "TLS workers started again",
            "ops",
            "Each has disconnected its clients. Above 0: read the log line `TLS worker ended`, and report it if it"
            " repeats.",
            [rate("worker_restarts_total", "instance, worker")],
        ),
        Panel(
            "Log messages dropped",
            "ops",
            "Above 0: the reader of standard error does not keep up, or its disk is full.",
            [rate("log_messages_dropped_total", "instance")],
            steps=((None, "green"), (0.001, "red")),
        ),
        Panel(
            "Reloads in the last hour",
            "short",
            "failure: the configuration has a mistake, and the old one stays. Run `kmip-gateway check CONFIG`.",
            [Query(f"increase(kmip_gateway_config_reloads_total{{{OWN}}}[1h])", "{{instance}} {{result}}")],
        ),
        Panel(
            "Last reload",
            "short",
            "failed: the next start would fail, too. Run `kmip-gateway check CONFIG`, and correct the file.",
            [Query(f"kmip_gateway_config_last_reload_successful{{{OWN}}}", "{{instance}}")],
            "state-timeline",
            names=((0, "failed", "red"), (1, "succeeded", "green")),
        ),
        Panel(
            "Age of the configuration",
            "s",
            "Time since the configuration in use was read. Older than your last change: the change is not in use;"
            " reload.",
            [
                Query(
                    f"time() - kmip_gateway_config_last_reload_success_timestamp_seconds{{{OWN}}}",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Configuration in use",
            "short",
            "The beginning of the SHA-256 of the file in use, as `sha256sum` prints it, and the number of gateways"
            " with it. More than one where all gateways should have the same file: reload the others.",
            [Query(f"count by (sha256) (kmip_gateway_config_info{{{OWN}}})", "{{sha256}}")],
            "table",
        ),
        Panel(
            "Draining",
            "short",
            "1 while the gateway drains, before it ends. For longer than `lame_duck` and `drain` together: look at"
            " its log.",
            [Query(f"kmip_gateway_draining{{{OWN}}}", "{{instance}}")],
            "state-timeline",
            names=((0, "serving", "green"), (1, "draining", "purple")),
        ),
    ],
)

AUDIT: Final = Row(
    "Audit trail",
    [
        Panel(
            "Lines of the audit trail",
            "ops",
            "Lines written a second. At 0 while requests come: the trail is off, or can't be written.",
            [rate("audit_lines_total", "instance")],
        ),
        Panel(
            "Records lost",
            "ops",
            "Above 0: requests have no line in the trail, because its queue was full. Find out why writing is slow,"
            " or set `on_failure` to refuse.",
            [rate("audit_records_lost_total", "instance")],
            steps=((None, "green"), (0.001, "red")),
        ),
        Panel(
            "Bytes queued for the audit trail",
            "bytes",
            "Near 0 in good order. A climb towards `[audit] max_queued`: the disk or the daemon does not keep up.",
            [total("audit_queued_bytes", by="instance")],
        ),
        Panel(
            "Audit trail writable",
            "short",
            "failing: the disk is full, or the syslog daemon is gone; the log line `audit trail cannot be written`"
            " says which.",
            [Query(f"kmip_gateway_audit_failing{{{OWN}}}", "{{instance}}")],
            "state-timeline",
            names=((0, "written", "green"), (1, "failing", "red")),
        ),
    ],
    per_line=4,
)

ROWS: Final = [TLS, CLIENTS, PROCESS, AUDIT]
