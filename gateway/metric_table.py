"""The table of metrics: the name, kind, labels and help text of every metric that /metrics shows.

Names follow Prometheus' conventions: base units, and ``_total`` for counters. No label is unbounded: of the values that
a client chooses, an unknown one becomes ``Unknown`` or ``other``. ``identity`` is the name of an identity of the
configuration, or ``unidentified``; it stands alone or beside ``backend`` and one label with few values, never beside
``operation`` or ``protocol_version``, so that hundreds of identities make thousands of series, not millions.

``python docs/build_metrics.py`` writes docs/metrics.md from the table.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client import Counter, Gauge

from gateway.fast_metrics import FastCounterFamily, FastGaugeFamily, FastHistogramFamily, FunctionCounter, FunctionGauge
from gateway.metric_rows import Row, Section, row

REQUEST_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IDENTITY_BUCKETS: Final = (0.0025, 0.01, 0.05, 0.25, 1, 5)  # few: they are there for each identity
HANDSHAKE_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
REUSE_BUCKETS: Final = (0, 1, 2, 5, 10, 100, 1000)
CONNECTION_BUCKETS: Final = (0.1, 1, 10, 60, 300, 1800, 3600, 14400, 86400)
AGE_BUCKETS: Final = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14400, 86400)
IDLE_BUCKETS: Final = (1, 2.5, 5, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600)
SIZE_BUCKETS: Final = tuple(4.0**power for power in range(4, 12))  # from 256 bytes to 4 MiB
ITEM_BUCKETS: Final = (2, 4, 8, 16, 32, 64, 128, 256, 1024)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
UNIDENTIFIED: Final = "unidentified"  # identity of a client that no identity rule matches, or that is not known yet


class MetricTable:
    """An entry for each metric: attribute, kind, name after ``kmip_gateway_``, help, labels.

    An object of ``Metrics`` has the metrics themselves under the same attributes.
    """

    _requests_section = Section("Requests")
    requests: FastCounterFamily = row(
        "requests_total",
        "Requests, by result: success, operation_failed, operation_pending, gateway_error or client_disconnected.",
        "operation",
        "result",
        "protocol_version",
        detail="operation_failed: a key manager has answered that an operation failed. gateway_error: the gateway"
        " answered an error itself (`local_errors_total` says why). client_disconnected: the client had disconnected"
        " and other requests waited, so that its request was abandoned.",
    )
    request_duration: FastHistogramFamily = row(
        "request_duration_seconds",
        "Time from a request's last byte to the handover of its answer to TLS.",
        "operation",
        buckets=REQUEST_BUCKETS,
    )
    identity_requests: FastCounterFamily = row(
        "identity_requests_total",
        "Requests by identity and result, as in requests_total.",
        "identity",
        "result",
        detail="For each tenant: its rate, and its errors.",
    )
    identity_request_duration: FastHistogramFamily = row(
        "identity_request_duration_seconds",
        "Duration of requests by identity, as in request_duration_seconds.",
        "identity",
        buckets=IDENTITY_BUCKETS,
    )
    request_size: FastHistogramFamily = row(
        "request_size_bytes",
        "Sizes of requests of clients, without TLS.",
        buckets=SIZE_BUCKETS,
        detail="A request above `limits.max_request_size` is refused before it is read, and not counted here.",
    )
    response_size: FastHistogramFamily = row(
        "response_size_bytes",
        "Sizes of answers to clients, without TLS, errors of the gateway itself among them.",
        buckets=SIZE_BUCKETS,
        detail="Answers that come near to `limits.max_response_size` are long lists of a Locate: ask for fewer.",
    )
    batch_items: FastHistogramFamily = row(
        "batch_items",
        "Operations in a request of more than one.",
        buckets=ITEM_BUCKETS,
        detail="A batch holds its session as long as all its operations take, and is repeated only if each of them may"
        " be; `limits.max_batch_items` bounds it.",
    )
    requests_in_flight: Gauge = row("requests_in_flight", "Requests read and not yet answered.")
    requests_max: FunctionGauge = row("requests_max", "Most requests in flight: limits.max_requests.")
    memory_buffered: Gauge = row(
        "memory_buffered_bytes", "Bytes of requests and answers held in memory; bounded by memory_budget_bytes."
    )
    memory_budget: FunctionGauge = row(
        "memory_budget_bytes", "Most bytes of requests and answers held in memory: limits.max_buffered."
    )
    limit_rejections: FastCounterFamily = row(
        "limit_rejections_total",
        "Requests and client connections rejected because of a limit.",
        "limit",
        "identity",
        detail="max_clients, listener_max_clients, principal_max_clients, max_half_open, address_max_clients,"
        " address_max_half_open, address_handshakes_per_second; max_requests, principal_max_requests,"
        " requests_per_second, max_buffered, principal_max_buffered. The log line `request refused`, or `connection"
        " closed: limit reached`, names the client.",
    )
    local_errors: FastCounterFamily = row(
        "local_errors_total",
        "Errors that the gateway itself answered, by reason.",
        "reason",
        "identity",
        detail="The reasons are those of the log line `request refused` ([operations.md](operations.md#log-lines)).",
    )
    policy_refusals: FastCounterFamily = row(
        "policy_refusals_total",
        "Operations refused by the policy of an identity.",
        "identity",
        "operation",
        detail="Or never forwarded. `Batch` is a batch that is too long ([security.md](security.md)).",
    )
    local_answers: Counter = row(
        "local_answers_total",
        "Requests that the gateway itself answered successfully.",
        "operation",
        detail="Discover Versions.",
    )
    result_reasons: Counter = row(
        "result_reasons_total", "Failed operations in backends' answers, by KMIP Result Reason.", "reason"
    )

    _retries_section = Section("Retries and replication")
    retries: FastCounterFamily = row(
        "retries_total",
        "Requests sent again, by the reason of the failure before, and by the outcome of the request.",
        "reason",
        "outcome",
        detail="overdue: a slow read that was also sent to a second key manager. The outcome is answered, failed or"
        " abandoned (the client has disconnected); it is counted when the request ends. Retries that fail mean that"
        " more than one key manager is in trouble.",
    )
    retries_denied: FastCounterFamily = row(
        "retries_denied_total",
        "Failed requests not sent again: unsafe, or over the retry budget.",
        "reason",
        detail="budget: no token of the retry budget came before the deadline. More than a few mean that key"
        " managers fail too often for retries to hide it ([failover.md](failover.md)).",
    )
    retry_budget_tokens: FunctionGauge = row(
        "retry_budget_tokens",
        "Tokens of an identity's retry budget, by state: held by a request that was sent again, or free.",
        "identity",
        "state",
        detail="They grow with the identity's requests in flight (`failover.retry_ratio`), and are never fewer than"
        " `failover.min_retries`. free at 0: further reads that fail wait for a token. The identities are those that"
        " have sent a request.",
    )
    affinity_clients: Gauge = row(
        "affinity_clients", "Clients that stay on one backend for a while because they changed something."
    )
    fallback_lookups: Counter = row(
        "fallback_lookups_total",
        "Reads of objects that the first backend did not have: found elsewhere, missing, or denied by the budget.",
        "result",
    )

    _backends_section = Section(
        "Backends",
        "`backend` is the name of a key manager in the configuration, or `name/1`, `name/2` and so on if several"
        " addresses of the name are key managers of their own.",
    )
    backend_up: FunctionGauge = row(
        "backend_up",
        "1 if the backend can serve at least one identity, as far as is known.",
        "backend",
        detail="0 at all of them is an outage.",
    )
    backend_identity_up: FunctionGauge = row(
        "backend_identity_up",
        "1 if the backend can serve the identity, as far as is known.",
        "backend",
        "identity",
        detail="If an identity has 0 at all key managers, its clients get errors although the others are served: its"
        " certificate has expired, or the key managers refuse it. `session_open_failures_total` has the reason.",
    )
    backend_state: FunctionGauge = row(
        "backend_state",
        "1 for the backend's current state: up, standby, down, ejected, half_open or drained.",
        "backend",
        "state",
        detail="The states are in [failover.md](failover.md). drained: by an operator.",
    )
    backend_state_changes: FastCounterFamily = row(
        "backend_state_changes_total", "Changes of a backend to a state.", "backend", "state"
    )
    backend_weight: FunctionGauge = row(
        "backend_weight", "Share of requests: the weight in the configuration, or as changed at run time.", "backend"
    )
    backend_ejections: FastCounterFamily = row(
        "backend_ejections_total",
        "Ejections of a backend after consecutive failures, by credential.",
        "backend",
        "credential",
        detail="The credential of one identity, or `all`.",
    )
    backend_health_checks: FastCounterFamily = row(
        "backend_health_checks_total", "Health checks, by result: serves, standby or fails.", "backend", "result"
    )
    backend_health_check_duration: FastHistogramFamily = row(
        "backend_health_check_duration_seconds",
        "Duration of health checks, answered or not.",
        "backend",
        buckets=REQUEST_BUCKETS,
    )
    backend_last_health_check: FunctionGauge = row(
        "backend_last_health_check_success_timestamp_seconds",
        "Time of the last successful health check, in Unix time; 0 before the first.",
        "backend",
    )
    backend_requests: FastCounterFamily = row(
        "backend_requests_total",
        "Exchanges with a backend, by result: answered, or the stage and reason of the failure.",
        "backend",
        "result",
        detail="The stages are send, wait (no byte of the answer) and read; the reasons are those of the log line"
        " `exchange failed`.",
    )
    backend_request_duration: FastHistogramFamily = row(
        "backend_request_duration_seconds",
        "Duration of answered exchanges with a backend.",
        "backend",
        buckets=REQUEST_BUCKETS,
        detail="The difference to `request_duration_seconds` is the gateway's own time, and waits for sessions.",
    )
    dns_resolutions: FastCounterFamily = row(
        "dns_resolutions_total",
        "Lookups of the names of backends, by result: success or failure.",
        "backend",
        "result",
        detail="While a lookup fails, sessions are opened to the known addresses.",
    )

    _sessions_section = Section("Sessions", "Connections to key managers, which requests share.")
    sessions: FunctionGauge = row("sessions", "Sessions, by state: idle, busy or opening.", "backend", "state")
    sessions_max: FunctionGauge = row("sessions_max", "Most sessions that a backend may have.", "backend")
    pool_waiters: FunctionGauge = row("pool_waiters", "Requests waiting for a session.", "backend")
    pool_oldest_waiter: FunctionGauge = row(
        "pool_oldest_waiter_seconds",
        "Time for which the oldest waiting request has waited for a session; 0 if none waits.",
        "backend",
        detail="The first sign that `max_sessions` is too low, or the key manager too slow.",
    )
    pool_wait_timeouts: FastCounterFamily = row(
        "pool_wait_timeouts_total",
        "Waits of requests for a session that ended because their time was over.",
        "backend",
        detail="Another key manager may have answered the request; if none has, `local_errors_total` counts it, too.",
    )
    request_queue_duration: FastHistogramFamily = row(
        "request_queue_duration_seconds",
        "Waits of requests for a session, also those that got none; requests that found an idle session are not"
        " counted.",
        "backend",
        buckets=REQUEST_BUCKETS,
    )
    session_reuses: FastCounterFamily = row(
        "session_reuses_total",
        "Requests sent on a session that was open before.",
        "backend",
        detail="Divided by `backend_requests_total`, close to 1 in good order.",
    )
    session_stale: FastCounterFamily = row(
        "session_stale_total",
        "Sessions that the backend had closed, found when a request wanted them: at checkout, or in_flight.",
        "backend",
        "when",
        detail="in_flight: after the request was sent, which costs a retry. If they are more than a few, lower"
        " `pool.idle_timeout` below the time after which the key manager closes idle sessions.",
    )
    session_idle_at_remote_close: FastHistogramFamily = row(
        "session_idle_at_remote_close_seconds",
        "Time without use of sessions that the backend closed while they were idle.",
        "backend",
        buckets=IDLE_BUCKETS,
        detail="Found at most a quarter of a second later. Many of the same age show the key manager's own limit, or"
        " that of a firewall: set `pool.idle_timeout` below it. All ages mean restarts.",
    )
    session_idle_limit: FunctionGauge = row(
        "session_idle_limit_seconds",
        "Longest time that a session may be idle; source is config or learned.",
        "backend",
        "source",
    )
    sessions_opened: FastCounterFamily = row(
        "sessions_opened_total", "Sessions opened to a backend.", "backend", detail="The rate should be low."
    )
    session_age: FastHistogramFamily = row(
        "session_age_seconds",
        "Age of sessions when they were closed.",
        "backend",
        buckets=AGE_BUCKETS,
        detail="Up to `pool.max_lifetime` in good order. Young ones cost handshakes: `sessions_closed_total` has the"
        " reason.",
    )
    session_open_failures: FastCounterFamily = row(
        "session_open_failures_total",
        "Failed attempts to open a session, by reason.",
        "backend",
        "identity",
        "reason",
        detail="connect, timeout, tls, hostname, pin, unknown_ca, expired, revoked, crl_stale: as the name says, of"
        " the key manager's certificate; alert: the key manager ended the handshake; credential: it closed, or sent"
        " an alert, instead of the first answer; validation: the first answer is not valid; handshake_too_large,"
        " certificate_too_large, records: it exceeded a bound on TLS records; resources: the gateway is out of"
        " descriptors or memory, which does not count against the key manager. The log line `can't open a session`"
        " says more.",
    )
    session_open_duration: FastHistogramFamily = row(
        "session_open_duration_seconds",
        "Time to open a session: connection, TLS handshake and first answer.",
        "backend",
        buckets=HANDSHAKE_BUCKETS,
    )
    minted_credentials: FunctionGauge = row(
        "minted_credentials",
        "Clients for which a minted certificate is kept, for all key managers.",
        detail="At most `pool.max_principals` besides those with requests in flight. If it stays there and"
        " `certificates_minted_total` grows fast, raise the limit.",
    )
    certificates_minted: FastCounterFamily = row(
        "certificates_minted_total",
        "Certificates minted for clients, or refused by the issuing CA.",
        "identity",
        "result",
        detail="issued, or refused: see the log line `request refused`, `not_minted`.",
    )
    sessions_closed: FastCounterFamily = row(
        "sessions_closed_total",
        "Sessions closed, by reason.",
        "backend",
        "reason",
        detail="The rate should be low. idle, lifetime: `idle_timeout`, or `max_lifetime` or `kmip-gateway"
        " reconnect`; drained: by an operator; yielded: another identity needed the slot; drain: the gateway shuts"
        " down; ejected: the key manager went down; removed: its name no longer has this address; remote_idle: the"
        " key manager closed an idle session; remote_busy: the session ended during a request, by the key manager or"
        " because the gateway abandoned the request; error: a request got no answer in time; records: the key"
        " manager sent too many TLS records without data; unasked, mismatch: the key manager sent bytes that no"
        " request asked for, or answered another request. The last two should be 0 ([security.md](security.md)).",
    )

    _clients_section = Section("Clients")
    client_connections: FastGaugeFamily = row("client_connections", "Open client connections.", "listener")
    client_connections_max: FunctionGauge = row(
        "client_connections_max", "Most clients of a listener: its max_clients.", "listener"
    )
    clients: FunctionGauge = row("clients", "Clients that are served, of all listeners together.")
    clients_max: FunctionGauge = row("clients_max", "Most clients of all listeners together: limits.max_clients.")
    identity_connections: FunctionGauge = row(
        "identity_connections", "Open connections of clients by identity.", "identity"
    )
    client_half_open: FastGaugeFamily = row(
        "client_half_open_connections", "Client connections whose TLS handshake is not finished.", "listener"
    )
    client_half_open_max: FunctionGauge = row(
        "client_half_open_connections_max",
        "Most client connections of all listeners whose TLS handshake is not finished: limits.max_half_open.",
    )
    client_connections_queued: Gauge = row(
        "client_connections_queued",
        "Client connections with unread data, waiting for their principal's turn.",
        detail="Above 0 for long means that the processor is the limit.",
    )
    accepting: Gauge = row(
        "accepting",
        "1 if new connections are accepted; 0 if draining or no backend is reachable.",
        "listener",
        detail='0 while no key manager has been reachable for 5 s (`when_none = "close"`), or while the gateway'
        " drains.",
    )
    client_handshakes: FastCounterFamily = row(
        "client_handshakes_total",
        "Client TLS handshakes completed.",
        "listener",
        "tls_version",
        "resumed",
        detail="If the share of resumed handshakes falls, clients or balancers in front have changed.",
    )
    client_handshake_duration: FastHistogramFamily = row(
        "client_handshake_duration_seconds",
        "Time from accepting a client to its completed TLS handshake.",
        "resumed",
        buckets=HANDSHAKE_BUCKETS,
    )
    ticket_key_age: FunctionGauge = row(
        "tls_ticket_key_age_seconds",
        "Age of the keys with which a listener makes session tickets.",
        "listener",
        detail="The keys are made at the start and when the listener's certificate, key, CA, `tls_policy` or"
        " `resumption_lifetime` changes; until clients have tickets of the new keys, they shake hands in full. The keys"
        " are only in memory; a restart makes new ones, too.",
    )
    client_connection_duration: FastHistogramFamily = row(
        "client_connection_duration_seconds",
        "Time from a client's TLS handshake to the end of its connection.",
        buckets=CONNECTION_BUCKETS,
    )
    client_requests_per_connection: FastHistogramFamily = row(
        "client_requests_per_connection", "Requests on a client connection until it closed.", buckets=REUSE_BUCKETS
    )
    client_received_bytes: FastCounterFamily = row(
        "client_received_bytes_total", "Bytes of KMIP requests from clients, without TLS.", "identity"
    )
    client_sent_bytes: FastCounterFamily = row(
        "client_sent_bytes_total", "Bytes of KMIP answers to clients, without TLS.", "identity"
    )
    client_aborts: FastCounterFamily = row(
        "client_aborts_total",
        "Requests whose client disconnected: in the phase reading, queued, sent or sending.",
        "phase",
        detail="reading: in the middle of the request; queued: before the request was sent to a key manager; sent:"
        " after that, and the request was abandoned; sending: before the client has read its answer. Many of them"
        " mean that clients do not wait long enough.",
    )
    client_connection_errors: FastCounterFamily = row(
        "client_connection_errors_total",
        "Client connections rejected or cut off, by reason.",
        "listener",
        "reason",
        detail="The log has their addresses. limit: closed or refused because of a limit; not_authenticated: no"
        " identity rule matches; revoked, expired, not_yet_valid, unknown_ca, crl_stale, chain_unknown: the"
        " certificate, or a CA certificate above it, is not accepted ([security.md](security.md#revocation)), also"
        " on connections that were open; evicted: a half-open connection closed for a newer one; proxy_header: no"
        " valid PROXY header; proxy_source: not from an address in `proxy_from`; records, handshake_too_large,"
        " certificate_too_large: a bound on TLS records exceeded ([security.md](security.md)); client_closed: the"
        " client closed the connection during its handshake or its request; not_tls, handshake_timeout and so on as"
        " the name says.",
    )

    _process_section = Section(
        "The process",
        "`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds`, `process_max_fds` and"
        " `process_start_time_seconds` are those of the core, if there are TLS workers.",
    )
    build_info: Gauge = row(
        "build_info",
        "Always 1; the labels are the running version, the versions of Python and OpenSSL in use, and the build.",
        "version",
        "python",
        "openssl",
        "build",
    )
    config_reloads: FastCounterFamily = row(
        "config_reloads_total",
        "Reloads of the configuration: success or failure.",
        "result",
        detail="failure: it had a mistake, and the old configuration stays.",
    )
    config_last_reload_successful: Gauge = row(
        "config_last_reload_successful",
        "1 if the last reload of the configuration, or the start, succeeded.",
        detail="0: the file has a mistake, which the log names; the next start will fail.",
    )
    config_last_reload_success: Gauge = row(
        "config_last_reload_success_timestamp_seconds",
        "Time at which the configuration in use was read, in Unix time.",
    )
    config_info: FunctionGauge = row(
        "config_info",
        "Always 1; the label is the beginning of the SHA-256 of the configuration file in use.",
        "sha256",
        detail="As `sha256sum FILE` prints it: gateways that should have the same file can be compared.",
    )
    draining: Gauge = row("draining", "1 if the gateway drains: it takes no new clients.")
    workers: FunctionGauge = row(
        "workers", "TLS workers that run, those that were replaced and still have clients among them."
    )
    worker_restarts: FastCounterFamily = row(
        "worker_restarts_total",
        "TLS workers started again after they ended.",
        "worker",
        detail="Each has disconnected its clients. The log line `TLS worker ended` has the exit status.",
    )
    worker_cpu: FastCounterFamily = row(
        "worker_cpu_seconds_total", "CPU time that TLS workers have used, by the worker's number.", "worker"
    )
    worker_memory: FunctionGauge = row(
        "worker_resident_memory_bytes", "Resident memory of TLS workers, by the worker's number.", "worker"
    )
    worker_descriptors: FunctionGauge = row(
        "worker_open_fds", "File descriptors that TLS workers have open, by the worker's number.", "worker"
    )
    event_loop_lag: FastHistogramFamily = row(
        "event_loop_lag_seconds",
        "Delay of a task that should run four times a second, in the core and in TLS workers.",
        "process",
        buckets=LAG_BUCKETS,
        detail="`process` is core or worker. Every request waits as long: a p99 above 0.1 s means that the process"
        " has too little of a processor.",
    )
    certificate_not_after: Gauge = row(
        "certificate_not_after_timestamp_seconds",
        "End of a certificate in use, in Unix time.",
        "role",
        "name",
        detail="`role` is listener, client_ca, backend_client (the certificate of an identity) or backend_ca. Alert"
        " at 30, 7 and 1 days.",
    )
    crl_next_update: Gauge = row(
        "crl_next_update_timestamp_seconds",
        "Time at which a CRL becomes stale, in Unix time; 0 for a CA without a CRL. role is client or backend.",
        "role",
        "name",
        "issuer",
        detail="If `client_crl` (role client) or `crl` (role backend) is set. Alert on"
        " `kmip_gateway_crl_next_update_timestamp_seconds - time() < 6 * 3600`, or what your CA's interval needs.",
    )
    crl_revoked: Gauge = row("crl_revoked_certificates", "Entries of a CRL.", "role", "name", "issuer")
    audit_lines: FunctionCounter = row(
        "audit_lines_total",
        "Number of the last line of the audit trail.",
        detail="Also counted over restarts ([audit.md](audit.md)).",
    )
    audit_records_lost: FunctionCounter = row(
        "audit_records_lost_total",
        "Records that got no line of the audit trail: its queue was full.",
        detail="Alert on it.",
    )
    audit_queued: Gauge = row(
        "audit_queued_bytes",
        "Bytes of the audit trail that are not written yet.",
        detail="`[audit] max_queued` bounds them.",
    )
    audit_failing: Gauge = row("audit_failing", "1 while the audit trail can't be written.", detail="Alert on it.")
    log_messages_dropped: FunctionCounter = row(
        "log_messages_dropped_total", "Log messages dropped: the disk was full, or standard error was not read."
    )


def _sections() -> Iterator[tuple[Section, dict[str, tuple[type, Row]]]]:
    kinds, section, rows = MetricTable.__annotations__, Section(""), dict[str, tuple[type, Row]]()
    for attribute, value in vars(MetricTable).items():
        if isinstance(value, Section):
            if rows:
                yield section, rows
            section, rows = value, {}
        elif isinstance(value, Row):
            rows[attribute] = (kinds[attribute], value)
    yield section, rows


#: The parts of the table, each with the kind of each metric, which is a class, and its row, by attribute.
SECTIONS: Final[list[tuple[Section, dict[str, tuple[type, Row]]]]] = list(_sections())
#: The table by attribute.
TABLE: Final[dict[str, tuple[type, Row]]] = {
    attribute: entry for _section, rows in SECTIONS for attribute, entry in rows.items()
}
