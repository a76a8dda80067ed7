"""Alerts about clients, certificates and the process, and the alerts that there are not."""

from typing import Final

from grafana.alert_types import BY as _BY
from grafana.alert_types import Alert, Group, Severity

_DAY: Final = 86400

_CLIENTS: Final = [
    Alert(
        "KmipGatewayClientsRefused",
        "warning",
        "15m",
        f"sum by ({_BY}, reason) (increase(kmip_gateway_client_connection_errors_total{{reason=~"
        '"not_authenticated|expired|not_yet_valid|revoked|unknown_ca|crl_stale|chain_unknown"}[10m]))',
        "> 5",
        "{{ $labels.instance }} refuses clients because of their certificates: {{ $labels.reason }}",
        "Clients try again and again with a certificate that the gateway does not accept. They get no keys.",
        "The log lines `handshake failed` and `request refused` have address, subject and issuer. expired: the client"
        " must renew its certificate. unknown_ca: its CA is not in `client_ca`. not_authenticated: no identity rule"
        " matches; see `kmip-gateway check --explain CERT.pem CONFIG`. crl_stale: see KmipGatewayCrlStale. revoked:"
        " that is meant to be; turn the client off.",
    ),
    Alert(
        "KmipGatewayResumptionCollapsed",
        "info",
        "30m",
        f'sum by ({_BY}) (rate(kmip_gateway_client_handshakes_total{{resumed="true"}}[15m]))'
        f" / (sum by ({_BY}) (rate(kmip_gateway_client_handshakes_total[15m])) > 0.1)",
        f'< 0.5 * sum by ({_BY}) (rate(kmip_gateway_client_handshakes_total{{resumed="true"}}[15m] offset 1h))'
        f" / (sum by ({_BY}) (rate(kmip_gateway_client_handshakes_total[15m] offset 1h)) > 0.1)",
        "only {{ $value | humanizePercentage }} of the handshakes at {{ $labels.instance }} are resumed, half as many"
        " as an hour ago",
        "Clients make full TLS handshakes that they used to resume: each costs this gateway ten times the processor"
        " time.",
        "Has a balancer in front begun to spread the connections of a client over several gateways, or have the"
        " certificate, `client_ca` or `tls_policy` of the listener changed? After a change the share recovers by"
        " itself.",
    ),
    Alert(
        "KmipGatewayClientsNearLimit",
        "warning",
        "10m",
        "kmip_gateway_clients / kmip_gateway_clients_max",
        "> 0.8",
        "{{ $labels.instance }} has {{ $value | humanizePercentage }} of the clients that it may have",
        "At `limits.max_clients`, further clients get an error.",
        "Raise `limits.max_clients` together with the limit of descriptors, add a gateway, or find the client that"
        " leaks connections: `kmip-gateway status` lists those with most of them.",
    ),
    Alert(
        "KmipGatewayListenerNearLimit",
        "warning",
        "10m",
        "kmip_gateway_client_connections / kmip_gateway_client_connections_max",
        "> 0.8",
        "listener {{ $labels.listener }} of {{ $labels.instance }} has {{ $value | humanizePercentage }} of its"
        " clients",
        "At `listeners.max_clients`, further clients of this listener get an error.",
        "Raise `listeners.max_clients`, add a gateway, or find the client that leaks connections: `kmip-gateway"
        " status` lists those with most of them.",
    ),
]


def _expires(name: str, severity: Severity, hold: str, days: int) -> Alert:
    return Alert(
        name,
        severity,
        hold,
        "(kmip_gateway_certificate_not_after_timestamp_seconds - time())",
        f"< {days} * {_DAY}",
        "{{ $labels.role }} certificate of {{ $labels.name }} ends in {{ $value | humanizeDuration }} ({{"
        " $labels.instance }})",
        f"A certificate in use ends within {days} day{'s' * (days > 1)}. When it ends, handshakes with it fail."
        " `role` is listener (shown to clients), client_ca and backend_ca (trusted CAs), backend_client (shown to"
        " key managers for the identity `name`), admin or admin_client_ca (the admin port). If your certificates"
        " live for days only, lower the threshold.",
        "Renew the file; the log line `certificate ends soon: renew it` names it, and `kmip-gateway status` lists all"
        " dates. The gateway uses a renewed file within seconds, without a restart. If it was renewed already, see"
        " KmipGatewayConfigReloadFailed.",
    )


_CERTIFICATES: Final = [
    _expires("KmipGatewayCertificateEndsIn14Days", "info", "1h", 14),
    _expires("KmipGatewayCertificateEndsIn7Days", "warning", "1h", 7),
    _expires("KmipGatewayCertificateEndsIn1Day", "critical", "5m", 1),
    Alert(
        "KmipGatewayCrlStale",
        "critical",
        "5m",
        "(kmip_gateway_crl_next_update_timestamp_seconds - time())",
        "< 0",
        "{{ $labels.instance }} has no current CRL of {{ $labels.issuer }} ({{ $labels.role }} {{ $labels.name }})",
        'The newest CRL of a CA is after its nextUpdate, or there is none. With `crl_stale = "refuse"` nobody with a'
        ' certificate of this CA is served; with "accept", a certificate revoked since is still accepted.',
        "Fetch the CRL from the CA into the file of `client_crl` (role client) or `crl` (role backend), and see why"
        " the job that does so has stopped. The gateway reads a changed file at once.",
    ),
    Alert(
        "KmipGatewayCrlEndsSoon",
        "warning",
        "10m",
        "(kmip_gateway_crl_next_update_timestamp_seconds - time())",
        "< 6 * 3600",
        "the CRL of {{ $labels.issuer }} becomes stale in {{ $value | humanizeDuration }} ({{ $labels.instance }})",
        "The CRL in use becomes stale within six hours, and no newer list has come. Adjust the threshold if your CA's"
        " lists last for less than a day.",
        "See why the job that fetches CRLs has not brought a newer list, or if the CA has made none.",
        ("and kmip_gateway_crl_next_update_timestamp_seconds - time() >= 0",),
    ),
]

_PROCESS: Final = [
    Alert(
        "KmipGatewayScrapeFailing",
        "critical",
        "2m",
        'up{job=~".*kmip-gateway.*"}',
        "== 0",
        "Prometheus can't read the metrics of {{ $labels.instance }}",
        "The gateway does not run, its machine can't be reached, or it refuses the scraper. No other alert of this"
        " gateway can fire meanwhile.",
        "Is the process running, and does `/livez` answer? If the gateway answers 401, 403 or 421, the scraper's"
        " token or certificate, or the name in `admin.hosts`, is wrong; the log line `request to the"
        " admin port refused` says which.",
    ),
    Alert(
        "KmipGatewayMissing",
        "critical",
        "5m",
        'absent(up{job=~".*kmip-gateway.*"})',
        "== 1",
        "Prometheus has no gateway to scrape",
        "No target of a job with `kmip-gateway` in its name exists: the scrape configuration or the discovery has"
        " lost them, or the job has another name.",
        "Look at the targets page of Prometheus. Rename the job, or change the name in this alert and in"
        " KmipGatewayScrapeFailing.",
    ),
    Alert(
        "KmipGatewayRestarting",
        "warning",
        "",
        'changes(process_start_time_seconds{job=~".*kmip-gateway.*"}[30m])',
        "> 2",
        "{{ $labels.instance }} has started several times in 30 minutes",
        "The gateway ends again and again, and is started again by the service manager. Each time all its clients are"
        " disconnected.",
        "Read the last lines of the log before each start: a mistake of the configuration, the watchdog (`event loop"
        " stands still`), or nothing, if the kernel ended it for want of memory (`dmesg`).",
    ),
    Alert(
        "KmipGatewayConfigReloadFailed",
        "warning",
        "1m",
        "kmip_gateway_config_last_reload_successful",
        "== 0",
        "{{ $labels.instance }} could not reload its configuration",
        "The configuration, or a file that it names, has a mistake. The old one stays in use, certificates included;"
        " the next start would fail.",
        "Run `kmip-gateway check CONFIG`: it prints each mistake with its remedy. The log line `configuration not"
        " reloaded` has the same.",
    ),
    Alert(
        "KmipGatewayConfigDiffers",
        "info",
        "30m",
        "count by (job) (count by (job, sha256) (kmip_gateway_config_info))",
        "> 1",
        "the gateways of {{ $labels.job }} run with {{ $value }} different configurations",
        "Gateways of one job have different configuration files in use, for half an hour. If each has a file of its"
        " own, with its own addresses, remove this alert.",
        'The panel "Configuration in use" shows which gateway has which. Bring the current file to all of them, and'
        " reload (`kmip-gateway reload`).",
    ),
    Alert(
        "KmipGatewayWorkerRestarted",
        "warning",
        "",
        f"sum by ({_BY}) (increase(kmip_gateway_worker_restarts_total[15m]))",
        "> 0",
        "a TLS worker of {{ $labels.instance }} has ended and was started again",
        "A TLS worker has died, or was killed. Its clients were disconnected and had to connect again.",
        "The log line `TLS worker ended` has its exit status. 137 is a kill, often for want of memory (`dmesg`); 70"
        " is the watchdog. If it repeats, report it.",
    ),
    Alert(
        "KmipGatewayEventLoopLag",
        "warning",
        "10m",
        f"histogram_quantile(0.99, sum by ({_BY}, process, le) (rate(kmip_gateway_event_loop_lag_seconds_bucket[5m])))",
        "> 0.1",
        "the {{ $labels.process }} of {{ $labels.instance }} is delayed by {{ $value | humanizeDuration }}",
        "The event loop of the process runs late: every request waits as long. The process does not get the processor"
        " time that its load needs.",
        'See "CPU" on the dashboard. Near 100 %: add TLS workers (docs/scaling.md) or a gateway. If it is far below,'
        " the machine is busy with other work, or the container's CPU limit throttles the gateway.",
    ),
    Alert(
        "KmipGatewayMemoryNearLimit",
        "warning",
        "5m",
        "kmip_gateway_memory_buffered_bytes / kmip_gateway_memory_budget_bytes",
        "> 0.8",
        "{{ $labels.instance }} holds {{ $value | humanizePercentage }} of the messages that it may hold",
        "At `limits.max_buffered`, requests get errors, and connections that do not read are closed.",
        'See "Bytes by identity" for whose messages they are. A client that asks for much and does not read, or a key'
        " manager that does not answer, fills the memory; otherwise raise `limits.max_buffered` if the machine has"
        " memory.",
    ),
    Alert(
        "KmipGatewayDescriptorsNearLimit",
        "warning",
        "5m",
        f'max by ({_BY}) (process_open_fds{{job=~".*kmip-gateway.*"}} / process_max_fds)',
        "> 0.8",
        "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its file descriptors",
        "Every client and every session takes a file descriptor. Without any left, new clients wait and sessions"
        " can't be opened.",
        "Raise the limit (`LimitNOFILE=` of systemd, `ulimit -n`) above the sum that docs/operations.md#sizing gives,"
        " or lower `limits.max_clients`.",
    ),
    Alert(
        "KmipGatewayLogMessagesDropped",
        "warning",
        "",
        f"sum by ({_BY}) (increase(kmip_gateway_log_messages_dropped_total[15m]))",
        "> 0",
        "{{ $labels.instance }} has dropped log messages",
        "The reader of the log did not keep up, or its disk was full. The gateway does not wait for it: messages are"
        " lost.",
        "Look at the log's disk and at the collector that reads standard error.",
    ),
    Alert(
        "KmipGatewayAuditFailing",
        "critical",
        "1m",
        "kmip_gateway_audit_failing",
        "== 1",
        "{{ $labels.instance }} can't write its audit trail",
        'The audit trail can not be written. With `on_failure = "refuse"` clients get errors; otherwise lines are'
        " kept up to `audit.max_queued`, and then lost.",
        "The log line `audit trail cannot be written` has the reason: make room on the disk, or start the syslog"
        " daemon. The gateway tries again every second.",
    ),
    Alert(
        "KmipGatewayAuditRecordsLost",
        "critical",
        "",
        f"sum by ({_BY}) (increase(kmip_gateway_audit_records_lost_total[15m]))",
        "> 0",
        "{{ $labels.instance }} has lost records of its audit trail",
        "Requests were served that have no line in the audit trail: its queue was full.",
        "Make the disk or the daemon that takes the trail faster, or raise `audit.max_queued`. If no request may go"
        ' without its line, set `audit.on_failure` to "refuse".',
    ),
]

GROUPS: Final = [
    Group("Clients", _CLIENTS),
    Group("Certificates", _CERTIFICATES),
    Group("Process", _PROCESS),
]

#: Alerts of other proxies, each with the reason why it is not here.
NOT_THERE: Final = {
    "panic mode": "if no key manager is up, the gateway tries all of them for every request, and refuses nothing by"
    " itself. KmipGatewayNoBackend is the alert for that state.",
    "queue timeouts": "requests that waited in vain are errors with the reason overloaded, and count for"
    " KmipGatewayErrorsFast and KmipGatewayErrorsSlow; KmipGatewayPoolSaturated comes before them.",
    "ticket keys out of step": "each gateway has its own ticket keys and shares them with no replica: a session is"
    " resumed only at the gateway that issued it. KmipGatewayResumptionCollapsed notices"
    " if clients begin to change gateways.",
}
