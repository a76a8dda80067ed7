"""The page: what was measured, in Markdown. Pure: from results to text."""

from collections.abc import Sequence

from kmip_lab.speed.report import note, sections
from kmip_lab.speed.report.cases import CASES, OPERATIONS
from kmip_lab.speed.report.costs import COSTS, HANDSHAKES
from kmip_lab.speed.report.markdown import milliseconds, number, table
from kmip_lab.speed.report.results import BEYOND, REPLICATION, Point, Results, mean


def write(results: Results, charts_at: str = "charts") -> str:
    """The whole page; ``charts_at`` is where the charts are, from the page."""
    measured = [operation for operation in OPERATIONS if results.rates(operation, "single_fresh")]
    parts = [
        _INTRODUCTION,
        _how(results),
        _calibration(),
        "## What the gateway changes\n",
        sections.gains(results, measured),
        _ABOUT_TABLES,
        *(sections.operation_section(results, operation, charts_at) for operation in measured),
        sections.beside_the_note(results, measured),
        sections.beyond(results, charts_at) if results.all(BEYOND) else "",
        sections.replication(results, charts_at) if results.all(REPLICATION) else "",
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
## Operation by operation

Operations a minute, of all clients together. "Note" is the application note's number, "here" the one that was measured,
multiplied back from the scale. The gateway's columns are clients that do **not** cache, as in the first columns.
"""


def _how(results: Results) -> str:
    factors = table(
        ("operation", "costs divided by"), [(OPERATIONS[name], f"{one:.3g}") for name, one in results.factors.items()]
    )
    opening = _opening([point for point in results.points if point.opened])
    environment = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    return f"""\
## How it was measured

Four simulated key managers, each a process: two masters, each with a standby that its writes are replicated to
synchronously, and to the other two asynchronously. Two gateways, before one master and before all four, which find the
masters by themselves, have the default settings otherwise, and so take the masters in turn and answer Discover Versions
themselves. Replication takes no time in the note's experiment (0 s to a partner); what it costs is measured by itself,
below. Clients are processes that begin together; each does its operations one after the other, as the note's
`s_speed` does, and begins each session with Discover Versions, as qClient does.
In the direct cases with two servers, sessions go to the masters in turn, as behind the
note's load balancer. A gateway has been used by as many clients before the clock runs, and is measured until it has
opened no session meanwhile: it stands for one that has been running for long, whose pools are full. {opening}

* Environment: {environment}.
* `--scale {results.scale:g}`: costs are divided by a factor, so that rates are higher by it; the rates on this page are
  divided by it again, and latencies multiplied. The factor is the scale, but less where an operation costs so little
  that this machine's processors could not follow. What is no simulated cost, as a message's way over the network, is
  real time, and counts for more by that factor: it shows with a single client, who waits for it.
* Each client does an operation 100 times, as in the note, or less often where that takes long: {results.repeat} times
  at the least in the note's cases.
* With an odd number of clients that keep their sessions, one of two masters has one client more, and ends later. The
  gateway spreads requests rather than sessions.

{factors}"""


def _calibration() -> str:
    rows = [
        (
            OPERATIONS[name],
            number(note.saturated(name, "single_kept")),
            milliseconds(cost),
            number(note.saturated(name, "single_fresh")),
            milliseconds(HANDSHAKES[name]),
        )
        for name, cost in COSTS.operations.items()
    ]
    found = table(("operation", "note: cached", "so it costs", "note: not cached", "so a handshake adds"), rows)
    return f"""\
## Calibration

A simulated key manager does one thing at a time, as one HSM does, and takes its time for it. From the note's means over
two to ten clients, of a single server:

{found}
A key manager's handshake costs the same whatever is asked after it, so that there is one number for all: the median,
**{milliseconds(COSTS.handshake)}**. Resumed handshakes cost nothing, and are not used here.
"""


def _opening(points: Sequence[Point]) -> str:
    """Where that could not be had."""
    if not points:
        return "It opened none in any measurement."
    most = max(points, key=lambda point: point.opened or 0)
    where = f"{OPERATIONS[most.operation]}, {CASES[most.case].title}, {most.clients} clients"
    return f"In {len(points)} measurements it went on opening some: {most.opened} at the most ({where})."


def _processors(results: Results) -> str:
    rows = []
    for operation in dict.fromkeys(point.operation for point in results.points):
        points = [point for point in results.points if point.operation == operation]
        most = max(points, key=lambda point: point.cpu)
        errors = sum(point.errors for point in points)
        busiest = f"{CASES[most.case].title}, {most.clients} clients"
        average = mean(point.cpu for point in points)
        rows.append((OPERATIONS[operation], f"{average:.0%}", f"{most.cpu:.0%}", busiest, str(errors)))
    crowded = [point for point in results.points if point.cpu >= sections.CROWDED]
    limit = f"{sections.CROWDED:.0%} busy or more"
    remark = (
        f"In {len(crowded)} of {len(results.points)} measurements they were {limit}: those say as much of this machine "
        "as of what was measured."
        if crowded
        else f"In none of {len(results.points)} measurements were they {limit}."
    )
    header = ("operation", "mean", "most", "in", "errors")
    return f"""\
## This machine's processors, and errors

How much of the time the processors were busy, with clients, gateways and key managers all on them. {remark}

{table(header, rows)}"""
