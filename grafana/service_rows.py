"""The rows of the first dashboard about the service: headline, traffic, times and identities."""

from typing import Final

from grafana.panel_types import (
    BACKEND,
    IDENTITY,
    OWN,
    RATE,
    Panel,
    Query,
    Row,
    above,
    below,
    quantile,
    quantiles,
    rate,
    total,
)

_DAY: Final = 86400
_ANSWERED: Final = (
    f'sum(rate(kmip_gateway_requests_total{{{OWN},result!~"gateway_error|client_disconnected"}}{RATE}))'
    f' / sum(rate(kmip_gateway_requests_total{{{OWN},result!="client_disconnected"}}{RATE}))'
)

HEADLINE: Final = Row(
    "Headline",
    [
        Panel(
            "Requests",
            "reqps",
            "Requests of clients a second. At 0 in working hours: clients can't reach the gateway; look at the load"
            " balancer and at Clients.",
            [Query(f"sum(rate(kmip_gateway_requests_total{{{OWN}}}{RATE}))")],
            "stat",
        ),
        Panel(
            "Answered by backends",
            "percentunit",
            "Share of requests that a key manager has answered; for the others the gateway itself answered an error."
            " Abandoned requests are not counted. Below 99.9 %: look at the gateway's errors under Traffic.",
            [Query(_ANSWERED)],
            "stat",
            below(0.99, 0.999),
        ),
        Panel(
            "Duration, p99",
            "s",
            "One of 100 requests takes longer. Above a second, clients begin to give up: look at Where time goes.",
            [quantile(0.99, "request_duration_seconds")],
            "stat",
            above(0.5, 1),
        ),
        Panel(
            "Backends up",
            "percentunit",
            "Share of the key managers that serve. Below 100 %: look at Backends for the key manager that is down. At 0"
            " every request gets an error.",
            [Query(f"sum(kmip_gateway_backend_up{{{OWN}}}) / count(kmip_gateway_backend_up{{{OWN}}})")],
            "stat",
            below(0.01, 1),
        ),
        Panel(
            "Identities cut off",
            "short",
            "Identities that no key manager serves: their clients get errors. Above 0: look at Identities for the"
            " name, and renew or register its certificate.",
            [
                Query(
                    f"count(max by (instance, identity) (kmip_gateway_backend_identity_up{{{IDENTITY}}}) == 0)"
                    " or vector(0)"
                )
            ],
            "stat",
            ((None, "green"), (1, "red")),
        ),
        Panel(
            "Sessions busy",
            "percentunit",
            "Share of the sessions allowed to the key managers that are busy. Above 90 % requests begin to wait: look"
            " at Pools.",
            [
                Query(
                    f'sum(kmip_gateway_sessions{{{BACKEND},state="busy"}}) /'
                    f" sum(kmip_gateway_sessions_max{{{BACKEND}}})"
                )
            ],
            "stat",
            above(0.7, 0.9),
        ),
        Panel(
            "Client connections",
            "short",
            "Open connections of clients. A sudden fall means that clients were disconnected: look at Clients.",
            [total("client_connections")],
            "stat",
        ),
        Panel(
            "Next certificate ends in",
            "s",
            "Time until the first certificate in use ends. Below 14 days: renew it; the table under TLS names it.",
            [Query(f"min(kmip_gateway_certificate_not_after_timestamp_seconds{{{OWN}}}) - time()")],
            "stat",
            below(7 * _DAY, 14 * _DAY),
        ),
        Panel(
            "Version",
            "short",
            "Running versions, with the number of gateways of each. More than one for longer than an update: finish"
            " it.",
            [Query(f"count by (version) (kmip_gateway_build_info{{{OWN}}})", "{{version}}")],
            "stat",
        ),
        Panel(
            "Running for",
            "s",
            "Time since the youngest gateway started. Often below an hour: the gateway restarts; read the end of its"
            " log.",
            [Query(f"min(time() - process_start_time_seconds{{{OWN}}})")],
            "stat",
            below(600, 3600),
        ),
    ],
    per_line=5,
)

TRAFFIC: Final = Row(
    "Traffic",
    [
        Panel(
            "Requests by operation",
            "reqps",
            "The mix of operations. An operation that suddenly grows is a client that has changed, or repeats itself.",
            [rate("requests_total", "operation")],
            stacked=True,
        ),
        Panel(
            "Requests by result",
            "reqps",
            "success and operation_failed are key managers' answers; gateway_error is an error of the gateway (next"
            " panel); client_disconnected means that clients do not wait long enough.",
            [rate("requests_total", "result")],
            stacked=True,
        ),
        Panel(
            "Requests by protocol version",
            "reqps",
            "KMIP versions that clients use. A version that appears is a new or updated client.",
            [rate("requests_total", "protocol_version")],
        ),
        Panel(
            "Errors of the gateway itself, by reason",
            "reqps",
            "no_backend: look at Backends. overloaded: look at Pools and at rejections under Clients. deadline,"
            " backend_failed, outcome_unknown: a key manager fails requests. not_permitted, not_authenticated: a client"
            " does what it may not; the log names it.",
            [rate("local_errors_total", "reason")],
            stacked=True,
        ),
        Panel(
            "Failed operations by Result Reason",
            "reqps",
            "Errors of key managers, passed on. General Failure or Cryptographic Failure: the key manager or its HSM"
            " is ill. Item Not Found: clients ask for objects that do not exist, or replicas are late.",
            [rate("result_reasons_total", "reason")],
            stacked=True,
        ),
        Panel(
            "Request duration",
            "s",
            "How many requests took how long. A second band above the first is a key manager, or a kind of request,"
            " that is slower than the others.",
            [Query(f"sum by (le) (increase(kmip_gateway_request_duration_seconds_bucket{{{OWN}}}{RATE}))", "{{le}}")],
            "heatmap",
        ),
        Panel(
            "Requests in flight",
            "short",
            "Requests read and not yet answered, and the limit. A steady climb means that key managers answer more"
            " slowly than requests come.",
            [total("requests_in_flight", legend="in flight"), total("requests_max", legend="max")],
        ),
        Panel(
            "Sizes of requests and answers",
            "bytes",
            "One of 100 is larger than p99. Requests above `limits.max_request_size` (1 MiB) and answers above"
            " `limits.max_response_size` (2 MiB) become errors. Near them: long lists of a Locate, or large batches;"
            " ask for fewer, or raise the limits.",
            [
                quantile(0.99, "request_size_bytes", legend="requests p99"),
                quantile(0.5, "response_size_bytes", legend="answers p50"),
                quantile(0.99, "response_size_bytes", legend="answers p99"),
            ],
            steps=above(512 * 1024, 1024 * 1024),
        ),
        Panel(
            "Operations in a batch",
            "short",
            "Of requests with more than one operation. A batch of many holds its session as long as all of them take:"
            " above 64, ask its client for smaller ones, or set `max_batch_items` in the identity's policy.",
            quantiles("batch_items"),
            steps=above(64, 256),
        ),
        Panel(
            "Answers of the gateway itself",
            "reqps",
            "Discover Versions, which the gateway answers for all key managers. A high rate is a client that connects"
            " anew for each request.",
            [rate("local_answers_total", "operation")],
        ),
        Panel(
            "Fallback lookups by result",
            "reqps",
            "Reads of objects that the first key manager did not have. Many found elsewhere: replication between the"
            " key managers is late. denied: a client polls for objects that do not exist.",
            [rate("fallback_lookups_total", "result")],
        ),
    ],
)

TIMES: Final = Row(
    "Where time goes",
    [
        Panel(
            f"Stages, {name}",
            "s",
            f"{name.capitalize()} of each stage. If backend is nearly as high as the whole request, key managers are"
            " slow. If queue is high, sessions are too few. If connect is high, opening sessions is slow. If"
            " handshake alone is high, the gateway lacks processor time.",
            [
                quantile(share, "client_handshake_duration_seconds", legend="handshake of the client"),
                quantile(share, "request_queue_duration_seconds", BACKEND, legend="queue: wait for a session"),
                quantile(share, "session_open_duration_seconds", BACKEND, legend="connect: open a session"),
                quantile(
                    share, "backend_request_duration_seconds", BACKEND, legend="backend: answer of the key manager"
                ),
                quantile(share, "request_duration_seconds", legend="whole request"),
            ],
        )
        for name, share in (("median", 0.5), ("99th percentile", 0.99))
    ],
    per_line=2,
)

IDENTITIES: Final = Row(
    "Identities",
    [
        Panel(
            "Requests by identity",
            "reqps",
            "Who uses the key service. An identity that falls to 0 is cut off or has stopped.",
            [rate("identity_requests_total", "identity", IDENTITY)],
            stacked=True,
        ),
        Panel(
            "Errors of the gateway itself, by identity",
            "reqps",
            "For whom the service is not well. One identity alone: its certificate, its limits or its policy. All of"
            " them: the key managers.",
            [rate("local_errors_total", "identity, reason", IDENTITY)],
        ),
        Panel(
            "Duration by identity, p99",
            "s",
            "One of 100 requests takes longer. One identity alone is slow if its sessions are few, or its operations"
            " are slow ones.",
            [quantile(0.99, "identity_request_duration_seconds", IDENTITY, "identity")],
        ),
        Panel(
            "Key managers that serve the identity",
            "short",
            "At 0, its clients get errors although others are served: its certificate has ended, or the key managers"
            " refuse it. Look at the next panel, and renew or register the certificate.",
            [total("backend_identity_up", f'{IDENTITY},backend=~"$backend"', "identity")],
            steps=((None, "red"), (1, "green")),
        ),
        Panel(
            "Failures to open a session, by identity and reason",
            "ops",
            "credential, alert: the key manager refuses the identity's certificate. connect, timeout: it can't be"
            " reached. Other reasons are about the key manager's own certificate.",
            [rate("session_open_failures_total", "identity, reason", f'{IDENTITY},backend=~"$backend"')],
        ),
        Panel(
            "Operations refused by policy",
            "reqps",
            "Operations that `allow`, `refuse` or `object_types` of the identity forbid. A client that needs them"
            " must get them in the configuration; otherwise ask its owner.",
            [rate("policy_refusals_total", "identity, operation", IDENTITY)],
        ),
        Panel(
            "Connections by identity",
            "short",
            "Open connections. One identity with most of them may be a client that leaks connections.",
            [total("identity_connections", IDENTITY, "identity")],
            stacked=True,
        ),
        Panel(
            "Bytes by identity",
            "Bps",
            "Bytes of requests and answers, without TLS. Large answers are long lists of a Locate: ask for fewer.",
            [
                rate("client_received_bytes_total", "identity", IDENTITY, "{{identity}} requests"),
                rate("client_sent_bytes_total", "identity", IDENTITY, "{{identity}} answers"),
            ],
        ),
        Panel(
            "Minted certificates",
            "short",
            "Clients with a certificate of their own for the key managers, and certificates minted a second. refused:"
            " the issuing CA gives none; the log says why.",
            [
                total("minted_credentials", legend="clients"),
                rate("certificates_minted_total", "result", IDENTITY, "{{result}} a second"),
            ],
        ),
    ],
)

ROWS: Final = [HEADLINE, TRAFFIC, TIMES, IDENTITIES]
