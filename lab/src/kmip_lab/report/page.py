"""The page in Markdown, written from results alone."""

from collections.abc import Sequence

from kmip_lab.report import note, sections
from kmip_lab.report.cases import CASES, OPERATIONS
from kmip_lab.report.costs import COSTS, HANDSHAKES
from kmip_lab.report.results import BEYOND, REPLICATION, ReportPoint, Results
from kmip_lab.tools.statistics import mean
from kmip_lab.tools.tables import markdown, milliseconds, number


def write(results: Results, charts_at: str = "charts") -> str:
    """Return the whole page; ``charts_at`` is the directory of the charts, relative to the page."""
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
experiment on simulated key managers, and adds a case that the note could not have: clients that do *not* cache, behind
the gateway. `make report` writes the page; it is not edited.

* **Calibrated**: the simulated key managers' costs, to reproduce the note's *single server* columns. If these columns
  agree, only the calibration is confirmed.
* **Measured**: everything else, that is two servers, the gateway with clients that open a session for every operation,
  more than ten clients, and the cost of replication.
"""

_ABOUT_TABLES = """\
## Operation by operation

Operations a minute, of all clients together. "Note" is the application note's number, "here" the measured number,
multiplied back from the scale. The gateway's columns are clients that do **not** cache, as in the first columns.
"""


def _how(results: Results) -> str:
    factors = markdown(
        ("operation", "costs divided by"), [(OPERATIONS[name], f"{one:.3g}") for name, one in results.factors.items()]
    )
    opening = _opening([point for point in results.points if point.opened])
    environment = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    return f"""\
## How it was measured

Four simulated key managers, each a process: two masters, each with a standby that its writes are replicated to
synchronously, and to the other two asynchronously. Two gateways, before one master and before all four, which find the
masters by themselves, have the default settings otherwise, and so take the masters in turn and answer Discover Versions
themselves. Replication takes no time in the note's experiment (0 s to a partner); its cost is measured separately,
below. Clients are processes that begin together; each does its operations one after the other, as the note's
`s_speed` does, and begins each session with Discover Versions, as qClient does.
In the direct cases with two servers, sessions go to the masters in turn, as behind the
note's load balancer. As many clients use a gateway before the clock runs, and the measurement is repeated until the
gateway opens no session meanwhile: it represents a gateway that has been running for long, whose pools are full.
{opening}

* Environment: {environment}.
* `--scale {results.scale:g}`: costs are divided by a factor, so that rates are higher by it; the rates on this page are
  divided by it again, and latencies multiplied. The factor is the scale, but less if an operation costs so little
  that this machine's processors could not follow. Time that is not a simulated cost, such as that of a message on the
  network, is real time, and counts for more by that factor: it shows with a single client, which waits for it.
* Each client does an operation 100 times, as in the note, or less often if that takes long: {results.repeat} times
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
    found = markdown(("operation", "note: cached", "cost", "note: not cached", "added by a handshake"), rows)
    return f"""\
## Calibration

A simulated key manager does one thing at a time, as one HSM does. Its costs follow from the note's means over two to
ten clients, of a single server:

{found}
A key manager's handshake costs the same, whatever operation follows, so that one number serves all: the median,
**{milliseconds(COSTS.handshake)}**. Resumed handshakes cost nothing, and are not used here.
"""


def _opening(points: Sequence[ReportPoint]) -> str:
    """Return a sentence about measurements in which the gateway opened sessions."""
    if not points:
        return "It opened no session in any measurement."
    most = max(points, key=lambda point: point.opened or 0)
    where = f"{OPERATIONS[most.operation]}, {CASES[most.case].title}, {most.clients} clients"
    return f"In {len(points)} measurements the gateway went on opening sessions: {most.opened} at the most ({where})."


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
        f"In {len(crowded)} of {len(results.points)} measurements they were {limit}: these rates are limited by this "
        "machine, too."
        if crowded
        else f"In none of {len(results.points)} measurements were they {limit}."
    )
    header = ("operation", "mean", "most", "in", "errors")
    return f"""\
## This machine's processors, and errors

How much of the time the processors were busy, with clients, gateways and key managers all on them. {remark}

{markdown(header, rows)}"""
