"""The page's sections of results in Markdown, written from results alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from kmip_lab.report import note
from kmip_lab.report.cases import CASES, FAR, OPERATIONS, VARIANTS
from kmip_lab.report.costs import COSTS, bound
from kmip_lab.report.results import BEYOND, REPLICATION, ReportPoint, Results
from kmip_lab.tools.statistics import mean
from kmip_lab.tools.tables import markdown, milliseconds, number

#: Share of busy processors from which on they, and not the key managers, may be the limit.
CROWDED = 0.9
_AT_THE_BOUND = 0.9  # of the rate that the costs allow; the rest is beginning and ending

#: By number of servers: clients that don't cache, that cache, and that don't, through the gateway.
_COMPARED: Final = {
    "1": ("single_fresh", "single_kept", "gateway_single"),
    "2": ("two_fresh", "two_kept", "gateway_two"),
}


def gains(results: Results, operations: Iterable[str]) -> str:
    """Compare clients that don't cache without the gateway and through it, and the bound that the costs set."""
    rows = []
    for operation in operations:
        for servers, cases in _COMPARED.items():
            direct, cached, through = (_mean_of_many(results.rates(operation, case)) for case in cases)
            most = bound(operation, CASES[cases[2]]) / bound(operation, CASES[cases[0]])
            ratio = f"**{through / direct:.1f} x**" if direct else "-"
            rates = map(number, (direct, through))
            rows.append((OPERATIONS[operation], servers, *rates, ratio, f"{most:.1f} x", number(cached)))
    header = ("operation", "servers", "not cached, direct", "not cached, gateway", "ratio", "bound", "cached, direct")
    return f"""\
Means over the numbers of clients above one. The gateway keeps sessions for clients that don't. It can't do more than
the key managers' costs allow without handshakes: the bound is the ratio of the rates that the costs allow with the
gateway and without it, (handshake + operation) / operation. The bound follows from the calibrated costs alone; how near
the gateway comes to it is measured. With odd numbers of clients the gateway may do more than cached clients, which
leave one master idle at the end.

{markdown(header, rows)}"""


def _mean_of_many(rates: Mapping[int, float]) -> float:
    """Return the mean rate of several clients: a server waits for a single client."""
    return mean(rate for clients, rate in rates.items() if clients > 1)


def operation_section(results: Results, operation: str, charts_at: str) -> str:
    """Return the section of an operation: its chart, and the note's numbers beside the measured numbers."""
    rates = {case: results.rates(operation, case) for case in CASES}
    header = ["clients"]
    for title in ("single, not cached", "single, cached", "two, not cached", "two, cached"):
        header += [f"{title}: note", "here"]
    header += ["gateway, one server", "gateway, two servers"]
    rows = []
    for clients in sorted({*note.CLIENTS, *(clients for case in rates.values() for clients in case)}):
        row = [str(clients)]
        for case in note.COLUMNS:
            row.append(number(note.per_minute(operation, case, clients)) if clients in note.CLIENTS else "-")
            row.append(number(rates[case].get(clients)))
        rows.append([*row, *(number(rates[case].get(clients)) for case in CASES if CASES[case].gateway)])
    allowed = ["**costs allow**"]
    for case in note.COLUMNS:
        allowed += ["", number(bound(operation, CASES[case]))]
    rows.append([*allowed, *(number(bound(operation, case)) for case in CASES.values() if case.gateway)])
    return f"""\
### {OPERATIONS[operation]}

![Operations a minute over the number of clients: the note's, and here]({charts_at}/speed-{operation}.svg)

{markdown(header, rows)}"""


def beside_the_note(results: Results, operations: Iterable[str]) -> str:
    """Return how near the measured columns come to the note's, with the reasons for differences."""
    ratios = {
        operation: [_beside(operation, case, results.rates(operation, case)) for case in note.COLUMNS]
        for operation in operations
    }
    rows = [
        (OPERATIONS[operation], *("-" if one is None else f"{one:.2f}" for one in found))
        for operation, found in ratios.items()
    ]
    header = ("operation", "single, not cached", "single, cached", "two, not cached", "two, cached")
    two_fresh = mean(found[2] for found in ratios.values() if found[2] is not None)
    off = [bound(name, CASES["single_fresh"]) / note.saturated(name, "single_fresh") - 1 for name in OPERATIONS]
    slower = sum(map(partial(_single_is_slower, case="single_fresh"), OPERATIONS))
    faster = len(OPERATIONS) - sum(map(partial(_single_is_slower, case="single_kept"), OPERATIONS))
    return f"""\
### How near this comes to the note

"Here" divided by "note": means over the numbers of clients above one that both have.

{markdown(header, rows)}
* **Single server, cached**: near 1 by calibration.
* **Single server, not cached**: one cost of a handshake serves all operations, and the note's tables have one each.
  So the rates that the costs allow are {min(off):+.0%} to {max(off):+.0%} of the note's means.
* **Two servers, not cached**: {two_fresh:.1f} times the note's. The note's laptop ran the clients, both servers and the
  load balancer, and handshakes took processor time from all of them; here, a master's costs are waiting time, and no
  load balancer is between masters and clients.
* **A single client**: not cached, the note's is slower than several in {slower} of {len(OPERATIONS)} tables, as it is
  here: client and network take their time while the server has nothing to do. Cached, it is faster than several in
  {faster} of {len(OPERATIONS)}: in this model, several clients cost a server no more than one, so that it does not
  reproduce that.
"""


def _beside(operation: str, case: str, rates: Mapping[int, float]) -> float | None:
    """Return our rate divided by the note's, the mean over numbers of clients above one in both; None without any."""
    both = [clients for clients in rates if clients in note.CLIENTS and clients > 1]
    return mean(rates[clients] / note.per_minute(operation, case, clients) for clients in both) if both else None


def _single_is_slower(operation: str, case: str) -> bool:
    """Return True if the note's single client is slower than several together."""
    return note.per_minute(operation, case, 1) < note.saturated(operation, case)


def beyond(results: Results, charts_at: str) -> str:
    """Return the section about more than ten clients, and their limit."""
    cases = list(dict.fromkeys(point.case for point in results.all(BEYOND)))
    rows = [
        (
            CASES[point.case].title,
            str(point.clients),
            number(point.per_minute),
            f"{point.per_minute / bound(point.operation, CASES[point.case]):.0%}",
            milliseconds(point.p50),
            milliseconds(point.p99),
            f"{point.cpu:.0%}",
            "-" if point.gateway_cpu is None else f"{point.gateway_cpu:.0%}",
            number(point.opened),
            str(point.errors),
        )
        for point in results.all(BEYOND)
    ]
    header = (
        *("Get", "clients", "operations/minute", "share of the bound", "p50", "p99", "processors"),
        *("gateway's processor", "sessions opened", "errors"),
    )
    summaries = "\n".join(f"* {_summary(results, results.all(BEYOND, case=case))}" for case in cases)
    return f"""\
## More than ten clients

The note: "It would be interesting to extend the tests beyond ten concurrent clients to determine when server capacity
is reached." Here, clients are processes as before. "Share of the bound" is that of the rate that the costs allow,
"processors" how busy all processors of this machine were, "gateway's processor" how busy the gateway's only processor
was, since it is one process; "sessions opened" are the sessions to key managers that the gateway opened meanwhile.

![Operations a minute, and latency, over the number of clients]({charts_at}/speed-beyond-ten.svg)

{markdown(header, rows)}
{summaries}

If the key managers are the limit, more clients do not do more operations but wait longer: the latency grows with the
number of clients.
"""


def _summary(results: Results, points: Sequence[ReportPoint]) -> str:
    """Return the limit of a case, as far as its numbers show it."""
    first, last = points[0], points[-1]
    case = CASES[last.case]
    change = last.per_minute / first.per_minute if first.per_minute else 0
    limit = _limit(last, results.factors[last.operation])
    words = f"{case.title}: with {last.clients} clients {change:.2f} times the rate of {first.clients}; {limit}"
    if last.gateway_cpu is None:
        return f"{words}."
    opened = f"{last.opened or 'no'} {'session' if last.opened == 1 else 'sessions'}"
    return f"{words}. The gateway used {last.gateway_cpu:.0%} of a processor, and opened {opened}."


def _limit(point: ReportPoint, factor: float) -> str:
    case = CASES[point.case]
    share = point.per_minute / bound(point.operation, case)
    handshakes = (point.opened or 0) * COSTS.handshake / factor / (case.servers * point.seconds)
    at = f"at {share:.0%} of what the costs allow"
    if share >= _AT_THE_BOUND:
        return f"the key managers are the limit: {share:.0%} of what their costs allow"
    if share + handshakes >= _AT_THE_BOUND:
        return f"the key managers are the limit, {at}: handshakes took {handshakes:.0%} of their time"
    if (point.gateway_cpu or 0) >= CROWDED:
        return f"the gateway is the limit, which has one processor ({point.gateway_cpu:.0%} busy), {at}"
    if point.cpu >= CROWDED:
        return f"this machine's processors are the limit ({point.cpu:.0%} busy), {at}"
    return f"nothing is at its limit, {at}, with {point.cpu:.0%} of the processors busy: processes wait for each other"


def replication(results: Results, charts_at: str) -> str:
    """Return the section about the cost of a synchronous partner, near and far."""
    points = results.all(REPLICATION)
    rows, losses = [], []
    for case in dict.fromkeys(point.case for point in points):
        lost = []
        for clients in sorted({point.clients for point in points}):
            found = {point.variant: point for point in points if (point.case, point.clients) == (case, clients)}
            cells = [f"{number(one.per_minute)} ({milliseconds(one.p50)})" for one in map(found.get, VARIANTS) if one]
            rows.append((CASES[case].title, str(clients), *cells))
            lost.append(f"{_change(found):+.0%} with {clients} {'client' if clients == 1 else 'clients'}")
        losses.append(f"* {CASES[case].title}: {', '.join(lost)}.")
    cost = COSTS.operations["create"]
    enough = math.ceil((cost + FAR) / cost)
    lines = "\n".join(losses)
    header = ("Create AES-256 key", "clients", *VARIANTS.values())
    return f"""\
## Synchronous replication: the note's third recommendation

The note recommends that a master's synchronous partner be collocated with it, and did not measure it. Here, a write is
answered when the synchronous partner has it: operations a minute, and the median latency.

![Create, operations a minute by kind of replication]({charts_at}/speed-replication.svg)

{markdown(header, rows)}
The change by a remote synchronous partner, compared with asynchronous replication:

{lines}

A single client waits for a remote partner's round trip with every write. The key manager serves other clients in that
time, if there are any: with {milliseconds(cost)} for a Create and {milliseconds(FAR)} for the round trip, its HSM
is never idle from {enough} writes under way at each master on. With fewer, the round trip shows in the rate.
"""


def _change(found: Mapping[str, ReportPoint]) -> float:
    """Return the relative change of the rate by a remote partner; 0 if there is no measurement to compare."""
    if not {"asynchronous", "remote"} <= found.keys() or not found["asynchronous"].per_minute:
        return 0.0
    return found["remote"].per_minute / found["asynchronous"].per_minute - 1
