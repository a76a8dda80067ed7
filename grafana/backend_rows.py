"""The rows of the first dashboard about key managers: sessions to them, their states and load, and retries."""

from typing import Final

from grafana.panel_types import (
    BACKEND,
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

STATES: Final = (
    (1, "up", "green"),
    (2, "standby", "blue"),
    (3, "half_open", "yellow"),
    (4, "ejected", "orange"),
    (5, "down", "red"),
    (6, "drained", "purple"),
)
_STATE: Final = " or ".join(
    f'{number} * (kmip_gateway_backend_state{{{BACKEND},state="{state}"}} == 1)' for number, state, _ in STATES
)

POOLS: Final = Row(
    "Pools",
    [
        Panel(
            "Sessions by state",
            "short",
            "Sessions to key managers, and the most that are allowed. busy near max: requests wait; raise"
            " `max_sessions`, or add key managers.",
            [total("sessions", BACKEND, "state"), total("sessions_max", BACKEND, legend="max")],
        ),
        Panel(
            "Requests waiting for a session",
            "short",
            "Above 0 for more than moments: too few sessions, or a slow key manager.",
            [total("pool_waiters", BACKEND, "backend")],
        ),
        Panel(
            "Longest wait for a session, now",
            "s",
            "The first sign of saturation. Above a second: raise `max_sessions`, or find out why the key manager is"
            " slow. At `pool.queue_timeout` (5 s) requests get errors.",
            [Query(f"max by (backend) (kmip_gateway_pool_oldest_waiter_seconds{{{BACKEND}}})", "{{backend}}")],
            steps=above(0.5, 1),
        ),
        Panel(
            "Requests on sessions that were open before",
            "percentunit",
            "Close to 100 % in good order. Lower: sessions are closed too early; look at the reasons two panels on.",
            [
                Query(
                    f"sum by (backend) (rate(kmip_gateway_session_reuses_total{{{BACKEND}}}{RATE}))"
                    f" / sum by (backend) (rate(kmip_gateway_backend_requests_total{{{BACKEND}}}{RATE}))",
                    "{{backend}}",
                )
            ],
            steps=below(0.8, 0.95),
        ),
        Panel(
            "Sessions opened",
            "ops",
            "Handshakes with key managers, their greatest cost. The rate should be low; if not, see why sessions are"
            " closed.",
            [rate("sessions_opened_total", "backend", BACKEND)],
        ),
        Panel(
            "Sessions closed by reason",
            "ops",
            "remote_idle: lower `pool.idle_timeout`. remote_busy, error: the key manager breaks off requests. unasked,"
            " mismatch: wrong bytes, see docs/security.md; these must be 0.",
            [rate("sessions_closed_total", "reason", BACKEND)],
        ),
        Panel(
            "Waits for a session that took too long",
            "ops",
            "Above 0: requests went to another key manager, or got an error, because all sessions of this one were busy"
            " for `pool.queue_timeout`. Raise `max_sessions`, or find out why the key manager is slow.",
            [rate("pool_wait_timeouts_total", "backend", BACKEND)],
            steps=((None, "green"), (0.001, "red")),
        ),
        Panel(
            "Age of sessions when closed, median",
            "s",
            "Near `pool.max_lifetime` in good order. Young sessions cost handshakes: the reasons are in Sessions closed"
            " by reason.",
            [quantile(0.5, "session_age_seconds", BACKEND, "backend")],
        ),
        Panel(
            "Idle time at which key managers close sessions, p10",
            "s",
            "Empty if key managers close none. If it is steady, it is the key manager's own limit, or a firewall's: set"
            " `pool.idle_timeout` below it. If it jumps: restarts.",
            [quantile(0.1, "session_idle_at_remote_close_seconds", BACKEND, "backend")],
        ),
        Panel(
            "Stale sessions",
            "ops",
            "Sessions that the key manager had closed, found when a request wanted them. in_flight costs a retry: lower"
            " `pool.idle_timeout` below the key manager's own.",
            [rate("session_stale_total", "backend, when", BACKEND)],
        ),
        Panel(
            "Failures to open a session, by backend",
            "ops",
            "The key manager refuses or fails new sessions; the log line `can't open a session` says why.",
            [rate("session_open_failures_total", "backend, reason", BACKEND)],
        ),
        Panel(
            "Idle limit of sessions",
            "s",
            "Longest time that a session may be idle. learned: the key manager closes idle sessions earlier than"
            " `pool.idle_timeout` says; lower it to this.",
            [Query(f"kmip_gateway_session_idle_limit_seconds{{{BACKEND}}}", "{{backend}} {{source}}")],
        ),
    ],
)

BACKENDS: Final = Row(
    "Backends",
    [
        Panel(
            "State",
            "short",
            "States of each key manager, as each gateway sees it. down, ejected: check the key manager; the log line"
            " `backend state changed` has the reason. drained: by an operator.",
            [Query(_STATE, "{{instance}} {{backend}}")],
            "state-timeline",
            names=STATES,
        ),
        Panel(
            "Up",
            "short",
            "1 if the key manager serves at least one identity. 0 at all of them is an outage.",
            [Query(f"kmip_gateway_backend_up{{{BACKEND}}}", "{{instance}} {{backend}}")],
            "state-timeline",
            names=((0, "down", "red"), (1, "up", "green")),
        ),
        Panel(
            "Requests by backend",
            "reqps",
            "The spread of requests. It should follow the weights; a key manager far below its share is slow, full or"
            " down.",
            [rate("backend_requests_total", "backend", BACKEND)],
            stacked=True,
        ),
        Panel(
            "Duration by backend, p99",
            "s",
            "Answers of each key manager. One above the others: check its load and its HSM, or drain it.",
            [quantile(0.99, "backend_request_duration_seconds", BACKEND, "backend")],
        ),
        Panel(
            "Requests to backends by result",
            "reqps",
            "answered is good. Everything else is the stage and the reason of a failure: send, wait or read. Failures"
            " at one key manager: drain it.",
            [rate("backend_requests_total", "backend, result", BACKEND)],
        ),
        Panel(
            "Ejections",
            "ops",
            "Ejections after consecutive failures. Again and again at one key manager: it fails real requests"
            " although it passes health checks.",
            [rate("backend_ejections_total", "backend, credential", BACKEND)],
        ),
        Panel(
            "State changes",
            "ops",
            "Key managers that go and come. More than a few in an hour: look for restarts, or a bad network path.",
            [rate("backend_state_changes_total", "backend, state", BACKEND)],
        ),
        Panel(
            "Health checks by result",
            "ops",
            "serves is good, standby is a key manager in reserve. fails: the key manager does not answer in time.",
            [rate("backend_health_checks_total", "backend, result", BACKEND)],
        ),
        Panel(
            "Duration of health checks",
            "s",
            "Above `health.timeout` (2 s), checks fail. A steady climb is a key manager that slows down.",
            quantiles("backend_health_check_duration_seconds", BACKEND),
            steps=above(1, 2),
        ),
        Panel(
            "Since the last good health check",
            "s",
            "Some seconds in good order (`health.interval`). A climbing line is a key manager that does not answer;"
            " since 1970 if it never did.",
            [
                Query(
                    f"time() - kmip_gateway_backend_last_health_check_success_timestamp_seconds{{{BACKEND}}}",
                    "{{instance}} {{backend}}",
                )
            ],
            steps=above(10, 60),
        ),
        Panel(
            "Weights",
            "short",
            "Shares of the requests. They change by `kmip-gateway weight` or a reload only.",
            [Query(f"kmip_gateway_backend_weight{{{BACKEND}}}", "{{instance}} {{backend}}")],
        ),
        Panel(
            "Lookups of names",
            "ops",
            "Lookups of the key managers' names. failure: the resolver does not answer; known addresses stay in use.",
            [rate("dns_resolutions_total", "backend, result", BACKEND)],
        ),
    ],
)

RETRIES: Final = Row(
    "Retries",
    [
        Panel(
            "Retries by reason",
            "reqps",
            "Requests sent a second time, which clients do not notice. More than a few: a key manager fails or is slow"
            " (overdue).",
            [rate("retries_total", "reason")],
        ),
        Panel(
            "Retries by outcome",
            "reqps",
            "answered is a request saved. failed means that more than one key manager is in trouble.",
            [rate("retries_total", "outcome")],
        ),
        Panel(
            "Retries denied",
            "reqps",
            "unsafe: a change that may have run is never sent again. budget: so many reads fail that not all can be"
            " retried; find the key manager that fails.",
            [rate("retries_denied_total", "reason")],
        ),
        Panel(
            "Tokens of retry budgets",
            "short",
            "held: requests that are sent again now. free is the fewest of an identity: at 0, its reads that fail wait"
            " for a token; find the key manager that fails, and do not raise the budget.",
            [
                total("retry_budget_tokens", f'{OWN},state="held"', legend="held"),
                Query(f'min(kmip_gateway_retry_budget_tokens{{{OWN},state="free"}})', "free, fewest"),
            ],
        ),
    ],
)

ROWS: Final = [POOLS, BACKENDS, RETRIES]
