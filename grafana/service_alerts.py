"""Alerts about the service: key managers, identities, requests and sessions.

A test runs the value of each alert against a real Prometheus: it must return data, also while the alert is silent.
"""

from typing import Final

from grafana.alert_types import BY as _BY
from grafana.alert_types import Alert, Group, Record, Severity

#: Reasons of errors that a key manager, the network or the gateway is responsible for, and not the client.
_OWN_ERRORS: Final = 'reason=~"no_backend|deadline|overloaded|backend_failed|outcome_unknown|not_minted"'
#: Limits that are set for a single client: whoever exceeds them gets errors that are meant to be.
_OWN_LIMITS: Final = 'limit=~"principal_.*|requests_per_second"'
#: Operations that take seconds in a hardware module in good order, or whose length the client chooses.
_SLOW: Final = 'operation!~"Create Key Pair|Re-key Key Pair|Batch"'
#: Requests a second of each key manager that gets any, for each unit of its weight.
_SHARES: Final = (
    f"(sum by ({_BY}, backend) (rate(kmip_gateway_backend_requests_total[15m])) > 0)"
    " / on (job, instance, backend) kmip_gateway_backend_weight"
)
_OBJECTIVE: Final = 0.001  # share of requests that may get an error


def _records(window: str) -> list[Record]:
    errors = f"sum by ({_BY}) (rate(kmip_gateway_local_errors_total{{{_OWN_ERRORS}}}[{window}]))"
    limited = f"sum by ({_BY}) (rate(kmip_gateway_limit_rejections_total{{{_OWN_LIMITS}}}[{window}]))"
    requests = f'sum by ({_BY}) (rate(kmip_gateway_requests_total{{result!="client_disconnected"}}[{window}]))'
    names = {kind: f"job_instance:kmip_{kind}:rate{window}" for kind in ("requests", "errors", "error_ratio")}
    return [
        Record(names["requests"], requests, f"requests a second, over {window}"),
        Record(
            names["errors"],
            f"clamp_min({errors}\n- ({limited}\n  or 0 * {errors}), 0)",
            f"errors a second of the gateway's own, over {window}, without errors that the client is responsible for",
        ),
        Record(
            names["error_ratio"],
            f"{names['errors']} / {names['requests']}\nor 0 * {names['requests']}",
            f"share of requests that got such an error, over {window}",
        ),
    ]


RECORDS: Final = [record for window in ("5m", "30m", "1h", "6h") for record in _records(window)]


def _burn(name: str, severity: Severity, factor: float, long: str, short: str, uses: str) -> Alert:
    limit = f"> {factor} * {_OBJECTIVE}"
    return Alert(
        name,
        severity,
        "2m",
        f"job_instance:kmip_error_ratio:rate{long}",
        limit,
        "{{ $labels.instance }} answers {{ $value | humanizePercentage }} of all requests with an error of its own",
        f"The gateway could not get answers for more than {100 * factor * _OBJECTIVE:g} % of all requests, over the"
        f" last {long} and still now. At this rate, {uses} of the errors that a month may have (0.1 % of all"
        f" requests) are used up in {long}.",
        'Look at "Errors of the gateway itself, by reason" on the dashboard. no_backend: key managers can\'t be'
        " reached. overloaded: requests wait too long for a session, see KmipGatewayPoolSaturated. deadline,"
        " backend_failed, outcome_unknown: key managers accept requests and do not answer. not_minted: the issuing CA"
        " gives no certificates. Look at the panels of the backends for the one that fails, and take it out with"
        " `kmip-gateway drain`. The log line `request refused` names the clients.",
        (
            f"and job_instance:kmip_error_ratio:rate{short} {limit}",
            f"and sum by ({_BY}) (increase(kmip_gateway_local_errors_total{{{_OWN_ERRORS}}}[{long}])) >= 10",
        ),
    )


_KEY_MANAGERS: Final = [
    Alert(
        "KmipGatewayNoBackend",
        "critical",
        "30s",
        f"sum by ({_BY}) (kmip_gateway_backend_up)",
        "== 0",
        "{{ $labels.instance }} can reach no key manager",
        "No key manager serves this gateway: every request gets an error, and after 5 s new connections are refused. If"
        " all gateways say so, the key managers or the network are down.",
        "Run `kmip-gateway check --connect CONFIG` on the gateway's machine: it tries each key manager and says what to"
        " do about each failure. The status page, `kmip-gateway status` and the log lines `can't open a session` have"
        " the last errors. If all fail alike, look at network and firewall between them and this gateway. If they were"
        " drained by an operator, run `kmip-gateway enable BACKEND`.",
    ),
    Alert(
        "KmipGatewayBackendDown",
        "warning",
        "5m",
        f'sum by ({_BY}, backend) (kmip_gateway_backend_state{{state=~"down|ejected|half_open"}})',
        "> 0",
        "{{ $labels.backend }} has not served {{ $labels.instance }} for five minutes",
        "The key manager is down, or fails requests again and again. Clients notice nothing while the other key"
        " managers carry the load.",
        "The log line `backend state changed` and the status page have the reason; `kmip-gateway check --connect"
        " CONFIG` tries the key manager and says what to do. Check the key manager: does it run, does it accept TLS"
        " with its usual certificate, is its disk full, does it find its HSM? To stop the attempts during a repair, run"
        " `kmip-gateway drain BACKEND`.",
    ),
    Alert(
        "KmipGatewayRedundancyLost",
        "warning",
        "10m",
        f'sum by ({_BY}) (kmip_gateway_backend_state{{state=~"up|standby"}})',
        "== 1",
        "only one key manager is left for {{ $labels.instance }}",
        "The gateway has several key managers, and all but one are down, ejected or drained, without a standby: the"
        " next failure is an outage for all clients.",
        "See which key managers are down (KmipGatewayBackendDown names them) or drained, and bring one of them back.",
        (f"and count by ({_BY}) (kmip_gateway_backend_up) > 1",),
    ),
    Alert(
        "KmipGatewayBackendFlapping",
        "warning",
        "",
        f'sum by ({_BY}, backend) (increase(kmip_gateway_backend_state_changes_total{{state="up"}}[15m]))',
        "> 3",
        "{{ $labels.backend }} went down and came back several times in 15 minutes, seen from {{ $labels.instance }}",
        "The key manager serves and fails in turn. Each time some requests are delayed, and changes in flight end with"
        ' "the outcome is unknown".',
        "Look at the log lines `backend state changed` and at the key manager's own log for these times: restarts, a"
        " full disk, an HSM that resets, a network path that loses packets. Until the cause is found, take the key"
        " manager out with `kmip-gateway drain BACKEND`. If it is only slow, raise `health.timeout`.",
    ),
    Alert(
        "KmipGatewayWrongAnswers",
        "critical",
        "",
        f'sum by ({_BY}, backend) (increase(kmip_gateway_sessions_closed_total{{reason=~"unasked|mismatch"}}[15m]))',
        "> 0",
        "{{ $labels.backend }} sent {{ $labels.instance }} bytes that belong to no request",
        "A key manager, or a device between it and the gateway, sent bytes that no request asked for, or the answer"
        " to another request. The gateway passed nothing of them on and closed the session. If that repeats, keys"
        " could reach the wrong client anywhere but through this gateway.",
        "Look at the log lines `session closed: the key manager ...`. Take the key manager out (`kmip-gateway drain"
        " BACKEND`), ask its vendor, and look for a TLS-terminating device or a load balancer in between.",
    ),
    Alert(
        "KmipGatewayTrafficImbalance",
        "info",
        "30m",
        f"max by ({_BY}) ({_SHARES}) / avg by ({_BY}) ({_SHARES})",
        "> 1.5",
        "one key manager gets {{ $value | humanize }} times its share of the requests of {{ $labels.instance }}",
        "Requests are spread less evenly over the key managers than their weights say. Key managers that get none"
        " (standbys, a lower priority) are not counted.",
        'See who gets more on "Requests by backend". With `replication.mode = "async"`, clients that change much keep'
        ' their reads at one key manager, and `balancing.policy = "least-outstanding"` follows the speed: both are'
        " meant to be. Otherwise look for a key manager that is slow, or at its `backends.max_sessions`.",
        (f"and sum by ({_BY}) (rate(kmip_gateway_backend_requests_total[15m])) > 1",),
    ),
    Alert(
        "KmipGatewayNameLookupFailing",
        "warning",
        "10m",
        f'sum by ({_BY}, backend) (increase(kmip_gateway_dns_resolutions_total{{result="failure"}}[5m]))',
        "> 0",
        "{{ $labels.instance }} can't look up the name of {{ $labels.backend }}",
        "The resolver fails. Sessions are still opened to the known addresses, but a key manager that moves is lost.",
        "The log line `can't resolve a name` has the error. Check the resolver, and `backends.address`.",
    ),
]

_IDENTITIES: Final = [
    Alert(
        "KmipGatewayCredentialRefused",
        "warning",
        "5m",
        f"sum by ({_BY}, backend, identity) (increase(kmip_gateway_session_open_failures_total"
        '{reason=~"credential|alert"}[3m]))',
        "> 0",
        "{{ $labels.backend }} refuses the certificate of {{ $labels.identity }} ({{ $labels.instance }})",
        "The key manager ends sessions before or at the first answer: it does not accept the certificate that the"
        " gateway shows for an identity. Clients of that identity use the other key managers; if all refuse it, they"
        " get errors.",
        "The log line `can't open a session` names the identity (`credential`) and what the key manager said;"
        " `kmip-gateway check --connect CONFIG` shows at which key managers. Register the certificate there,"
        " or renew it if it has expired; a renewed file is used at once.",
    ),
    Alert(
        "KmipGatewayIdentityCutOff",
        "critical",
        "1m",
        f"max by ({_BY}, identity) (kmip_gateway_backend_identity_up)",
        "== 0",
        "no key manager serves {{ $labels.identity }} at {{ $labels.instance }}",
        "All key managers refuse this identity, or fail for it alone: its clients get errors, although other"
        " identities are served.",
        "The status page says why, and what to do, as does `kmip-gateway check --connect CONFIG`. credential, alert in"
        ' "Failures to open a session, by identity and reason": the key managers do not accept its certificate: see if'
        " it has expired (`kmip-gateway status`) or is not registered there. Other reasons: see"
        " KmipGatewayBackendDown.",
        (f"unless on ({_BY}) sum by ({_BY}) (kmip_gateway_backend_up) == 0",),
    ),
    Alert(
        "KmipGatewayIdentityErrors",
        "warning",
        "10m",
        f"sum by ({_BY}, identity) (rate(kmip_gateway_local_errors_total{{{_OWN_ERRORS}}}[5m]))"
        f" / (sum by ({_BY}, identity) (rate(kmip_gateway_identity_requests_total[5m])) > 0)",
        "> 0.05",
        "{{ $value | humanizePercentage }} of the requests of {{ $labels.identity }} get errors of {{"
        " $labels.instance }}",
        "The clients of one identity get errors of the gateway's own, which may be too few to show in the ratio of"
        " all requests.",
        "The log lines `request refused` with this identity have the reasons. If other identities are served: its"
        " certificate (KmipGatewayCredentialRefused), its limits (KmipGatewayLimitReached), or its partition of the"
        " HSM.",
        (f"and sum by ({_BY}, identity) (increase(kmip_gateway_local_errors_total{{{_OWN_ERRORS}}}[10m])) >= 10",),
    ),
]

_REQUESTS: Final = [
    _burn("KmipGatewayErrorsFast", "critical", 14.4, "1h", "5m", "2 %"),
    _burn("KmipGatewayErrorsSlow", "warning", 6, "6h", "30m", "5 %"),
    Alert(
        "KmipGatewaySlow",
        "warning",
        "10m",
        f"histogram_quantile(0.99, sum by ({_BY}, le)"
        f" (rate(kmip_gateway_request_duration_seconds_bucket{{{_SLOW}}}[5m])))",
        "> 1",
        "one of 100 requests takes longer than {{ $value | humanizeDuration }} at {{ $labels.instance }}",
        "The slowest hundredth of the requests takes longer than a second, for ten minutes. Clients with short"
        " timeouts begin to give up. Operations that make key pairs, and batches, are not counted.",
        'Look at "Where time goes": if the backends\' time is as long, key managers are slow (look at each of them);'
        " if it is not, requests wait for sessions (KmipGatewayPoolSaturated) or the gateway has too little processor"
        ' time ("Process").',
        (f"and sum by ({_BY}) (rate(kmip_gateway_request_duration_seconds_count{{{_SLOW}}}[5m])) > 0.2",),
    ),
    Alert(
        "KmipGatewayRetryBudgetExhausted",
        "warning",
        "5m",
        f'sum by ({_BY}) (increase(kmip_gateway_retries_denied_total{{reason="budget"}}[3m]))',
        "> 0",
        "{{ $labels.instance }} has no retries left for failed reads",
        "So many reads fail at key managers that their retries exceed the budget (`failover.retry_ratio`). Reads that"
        " one more try would have saved get errors.",
        'Look for the key manager that fails on "Requests to backends by result", and take it out with `kmip-gateway'
        " drain BACKEND`. Do not raise the budget: it keeps an overloaded key manager from being buried by retries.",
    ),
    Alert(
        "KmipGatewayLimitReached",
        "warning",
        "5m",
        f"sum by ({_BY}, limit, identity) (increase(kmip_gateway_limit_rejections_total[3m]))",
        "> 0",
        "{{ $labels.instance }} has rejected clients or requests for five minutes: {{ $labels.limit }} is reached",
        "A limit of the configuration is reached, and what exceeds it is rejected. The limit may be doing its work"
        " against a client that runs wild, or be too low for the load of today.",
        "The log lines `connection closed: limit reached` and `request refused` name the clients; `kmip-gateway"
        " status` lists identities and addresses with most connections. Stop a client that runs wild. Otherwise raise"
        " the setting (docs/metrics.md, `limit_rejections_total`, has the names), after a look at the dashboard of"
        " capacity.",
    ),
]

_SESSIONS: Final = [
    Alert(
        "KmipGatewayPoolSaturated",
        "warning",
        "5m",
        f'sum by ({_BY}, backend) (kmip_gateway_sessions{{state="busy"}})'
        f" / (sum by ({_BY}, backend) (kmip_gateway_sessions_max) > 0)",
        "> 0.9",
        "{{ $value | humanizePercentage }} of the sessions that {{ $labels.backend }} may have are busy at {{"
        " $labels.instance }}",
        "Nearly all sessions to the key manager are busy. Beyond `max_sessions`, requests wait, and after"
        " `pool.queue_timeout` they get errors.",
        'If the key manager answers more slowly than usual ("Duration by backend, p99"), look there first.'
        " Otherwise the load has grown: raise `backends.max_sessions` if the key manager's license and memory allow"
        " it, or add a key manager.",
    ),
    Alert(
        "KmipGatewayRequestsWait",
        "warning",
        "1m",
        "kmip_gateway_pool_oldest_waiter_seconds",
        "> 1",
        "requests to {{ $labels.backend }} wait {{ $value | humanizeDuration }} for a session at {{ $labels.instance"
        " }}",
        "Requests have waited for a session for longer than a second, all the time for a minute. After"
        " `pool.queue_timeout` they get errors.",
        "If KmipGatewayPoolSaturated fires, too, follow it. Otherwise sessions can't be opened fast enough: look at"
        ' "Failures to open a session, by backend", and at connect on "Stages, 99th percentile".',
    ),
    Alert(
        "KmipGatewayStaleSessions",
        "warning",
        "15m",
        f'sum by ({_BY}, backend) (rate(kmip_gateway_session_stale_total{{when="in_flight"}}[15m]))'
        f" / (sum by ({_BY}, backend) (rate(kmip_gateway_session_reuses_total[15m])) > 0.1)",
        "> 0.01",
        "{{ $value | humanizePercentage }} of requests to {{ $labels.backend }} meet a closed session ({{"
        " $labels.instance }})",
        "The key manager closes idle sessions just when requests are sent on them. Reads are sent again, changes end"
        ' with "the outcome is unknown".',
        "Lower `pool.idle_timeout` below the time after which the key manager, or a firewall before it, closes idle"
        " sessions; or lower `pool.validate_after`.",
    ),
]

GROUPS: Final = [
    Group("Key managers", _KEY_MANAGERS),
    Group("Identities", _IDENTITIES),
    Group("Requests", _REQUESTS),
    Group("Sessions", _SESSIONS),
]
