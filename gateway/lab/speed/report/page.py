"""The page: what was measured, in Markdown. Pure: from results to text."""

from collections.abc import Iterable, Sequence

from gateway.lab.speed.report import note
from gateway.lab.speed.report.cases import CASES, OPERATIONS
from gateway.lab.speed.report.costs import COSTS, HANDSHAKES, bound
from gateway.lab.speed.report.links import VARIANTS
from gateway.lab.speed.report.results import BEYOND, REPLICATION, Point, Results, mean

_CROWDED = 0.9  # share of the processors from which on they, and not the key managers, may be what limits


def write(results: Results, charts_at: str = "charts") -> str:
    """The whole page; ``charts_at`` is where the charts are, from the page."""
    measured = [operation for operation in OPERATIONS if results.rates(operation, "single_fresh")]
    parts = [
        _INTRODUCTION,
        _how(results),
        _calibration(),
        "## What the gateway changes\n",
        _gains(results, measured),
        "## Operation by operation\n\n" + _ABOUT_TABLES,
        *(_operation(results, operation, charts_at) for operation in measured),
        _beyond(results, charts_at) if results.all(BEYOND) else "",
        _replication(results, charts_at) if results.all(REPLICATION) else "",
        _processors(results),
    ]
    return "\n".join(part for part in parts if part)


_INTRODUCTION = """\
# The application note's experiment, repeated

The application note on optimising KMIP performance measures five operations with one to ten concurrent clients, with
connections cached and not cached, against one key manager and against two behind a load balancer. This page repeats the
experiment on simulated key managers, and adds what the note could not have: clients that do *not* cache, behind the
gateway. It is written by `make report`, and not edited.

* **Calibrated**: the simulated key managers' costs, so that the note's *single server* columns come out. That these
  columns agree says nothing but that the calibration is right.
* **Measured**: everything else. What two servers do, what the gateway does with clients that open a session for every
  operation, what happens with more than ten clients, and what replication costs.
"""

_ABOUT_TABLES = """\
Operations a minute, of all clients together. "Note" is the application note's number, "here" the one that was measured,
multiplied back from the scale. The gateway's columns are clients that do **not** cache, as in the first columns.
"""


def _how(results: Results) -> str:
    factors = ", ".join(f"{OPERATIONS[name]} {factor:.3g}" for name, factor in results.factors.items())
    environment = "; ".join(f"{name} {value}" for name, value in results.environment.items())
    return f"""\
## How it was measured

Four simulated key managers, each a process: two masters, each with a standby that its writes are replicated to
synchronously, and to the other two asynchronously. Two gateways, before one master and before all four, which find the
masters by themselves. Clients are processes that begin together; each does its operations one after the other, as the
note's `s_speed` does, and begins each session with Discover Versions, as qClient does. In the direct cases with two
servers, sessions go to the masters in turn, as behind the note's load balancer. A gateway has been used by as many
clients for a moment before the clock runs: it stands for one that has been running for long.

* Environment: {environment}.
* `--scale {results.scale:g}`: costs are divided by a factor, so that rates are higher by it; the rates on this page are
  divided by it again, and latencies multiplied. The factor is the scale, but less where an operation costs so little
  that this machine's processors could not follow: {factors}. Each client does an operation 100 times, as in the note,
  or less often where that takes long: {results.repeat} times at the least in the cases of the note.
"""


def _calibration() -> str:
    rows = [
        (
            OPERATIONS[name],
            _number(note.saturated(name, "single_kept")),
            _milliseconds(cost),
            _number(note.saturated(name, "single_fresh")),
            _milliseconds(HANDSHAKES[name]),
        )
        for name, cost in COSTS.operations.items()
    ]
    table = _table(("operation", "note: cached", "so it costs", "note: not cached", "so a handshake adds"), rows)
    return f"""\
## Calibration

A simulated key manager does one thing at a time, as one HSM does, and takes its time for it. From the note's means over
two to ten clients, of a single server:

{table}
A key manager's handshake costs the same whatever is asked after it, so that there is one number for all: the median,
**{_milliseconds(COSTS.handshake)}**. Resumed handshakes cost nothing, and are not used here. With a single client the
note's numbers are lower, since client and network take their time while the server has nothing to do; here they are
lower, too, by what this machine takes.
"""


def _gains(results: Results, operations: Iterable[str]) -> str:
    rows = []
    for operation in operations:
        direct, cached, through = (
            mean(rate for clients, rate in results.rates(operation, case).items() if clients > 1)
            for case in ("two_fresh", "two_kept", "gateway_two")
        )
        most = bound(operation, CASES["gateway_two"]) / bound(operation, CASES["two_fresh"])
        ratio = f"**{through / direct:.1f} x**" if direct else "-"
        rows.append((OPERATIONS[operation], *map(_number, (direct, through)), ratio, f"{most:.1f} x", _number(cached)))
    header = ("operation", "not cached, direct", "not cached, through the gateway", "ratio", "bound", "cached, direct")
    return f"""\
Two servers, means over all numbers of clients but one. The gateway keeps sessions for clients that don't; it can't do
more than clients that cache, so that the ratio can't be greater than (handshake + operation) / operation: the bound
follows from the calibrated costs alone, how near the gateway comes to it is measured.

{_table(header, rows)}"""


def _operation(results: Results, operation: str, charts_at: str) -> str:
    rates = {case: results.rates(operation, case) for case in CASES}
    header = ["clients"]
    for title in ("single, not cached", "single, cached", "two, not cached", "two, cached"):
        header += [f"{title}: note", "here"]
    header += ["gateway, one server", "gateway, two servers"]
    rows = []
    for clients in results.clients:
        row = [str(clients)]
        for case in note.COLUMNS:
            row.append(_number(note.per_minute(operation, case, clients)) if clients in note.CLIENTS else "-")
            row.append(_number(rates[case].get(clients)))
        rows.append([*row, *(_number(rates[case].get(clients)) for case in CASES if CASES[case].gateway)])
    bounds = ", ".join(f"{case.title} {_number(bound(operation, case))}" for case in CASES.values())
    chart = f"speed-{operation.replace('_', '-')}.svg"
    return f"""\
### {OPERATIONS[operation]}

![Operations a minute over the number of clients: the note's, and here]({charts_at}/{chart})

{_table(header, rows)}
The costs allow at most: {bounds}.
"""


def _beyond(results: Results, charts_at: str) -> str:
    cases = list(dict.fromkeys(point.case for point in results.all(BEYOND)))
    rows = [
        (
            CASES[point.case].title,
            str(point.clients),
            _number(point.per_minute),
            f"{point.per_minute / bound(point.operation, CASES[point.case]):.0%}",
            _milliseconds(point.p50),
            _milliseconds(point.p99),
            f"{point.cpu:.0%}",
            str(point.errors),
        )
        for point in results.all(BEYOND)
    ]
    header = ("Get", "clients", "operations/minute", "of what costs allow", "p50", "p99", "processors", "errors")
    verdicts = "\n".join(f"* {_verdict(results.all(BEYOND, case=case))}" for case in cases)
    return f"""\
## More than ten clients

The note: "It would be interesting to extend the tests beyond ten concurrent clients to determine when server capacity
is reached." Here, clients are processes as before.

![Operations a minute, and latency, over the number of clients]({charts_at}/speed-beyond-ten.svg)

{_table(header, rows)}
{verdicts}

Where the key managers are the limit, more clients are no more operations, but longer waits: the latency grows with the
number of clients.
"""


def _verdict(points: Sequence[Point]) -> str:
    """What limits a case, as far as its numbers tell."""
    first, last = points[0], points[-1]
    case = CASES[last.case]
    share = last.per_minute / bound(last.operation, case)
    if last.cpu >= _CROWDED:
        limit = f"this machine's processors are the limit ({last.cpu:.0%} busy), at {share:.0%} of what the costs allow"
    elif share >= 0.9:
        limit = f"the key managers are the limit: {share:.0%} of what their costs allow"
    else:
        limit = f"{share:.0%} of what the costs allow, with {last.cpu:.0%} of the processors busy"
    change = last.per_minute / first.per_minute if first.per_minute else 0
    return f"{case.title}: with {last.clients} clients {change:.2f} times the rate of {first.clients}; {limit}."


def _replication(results: Results, charts_at: str) -> str:
    points = results.all(REPLICATION)
    rows = []
    for case in dict.fromkeys(point.case for point in points):
        for clients in sorted({point.clients for point in points}):
            found = {point.variant: point for point in points if (point.case, point.clients) == (case, clients)}
            cells = [f"{_number(one.per_minute)} ({_milliseconds(one.p50)})" for one in map(found.get, VARIANTS) if one]
            rows.append((CASES[case].title, str(clients), *cells))
    header = ("Create AES-256 key", "clients", *VARIANTS.values())
    return f"""\
## Synchronous replication: the note's third recommendation

The note recommends that a master's synchronous partner be collocated with it, and did not measure it. Here, a write is
answered when the synchronous partner has it: operations a minute, and the median latency.

![Create, operations a minute by kind of replication]({charts_at}/speed-replication.svg)

{_table(header, rows)}
A remote partner costs every write its round trip; the key manager itself does other things in that time, so that enough
clients at once make up for it in operations a minute, but never in latency.
"""


def _processors(results: Results) -> str:
    rows = []
    for operation in dict.fromkeys(point.operation for point in results.points):
        points = [point for point in results.points if point.operation == operation]
        most = max(points, key=lambda point: point.cpu)
        errors = sum(point.errors for point in points)
        busiest = f"{CASES[most.case].title}, {most.clients} clients"
        average = mean(point.cpu for point in points)
        rows.append((OPERATIONS[operation], f"{average:.0%}", f"{most.cpu:.0%}", busiest, str(errors)))
    crowded = [point for point in results.points if point.cpu >= _CROWDED]
    remark = (
        f"In {len(crowded)} of {len(results.points)} measurements they were {_CROWDED:.0%} busy or more: those say as "
        "much of this machine as of what was measured."
        if crowded
        else f"In none of {len(results.points)} measurements were they {_CROWDED:.0%} busy or more."
    )
    header = ("operation", "mean", "most", "in", "errors")
    return f"""\
## This machine's processors, and errors

How much of the time the processors were busy, with clients, gateways and key managers all on them. {remark}

{_table(header, rows)}"""


# Words and tables ---------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.1f} ms"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
