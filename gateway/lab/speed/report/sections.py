"""The page's sections of results, in Markdown. Pure: from results to text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gateway.lab.speed.report import note
from gateway.lab.speed.report.cases import CASES, OPERATIONS
from gateway.lab.speed.report.costs import bound
from gateway.lab.speed.report.links import VARIANTS
from gateway.lab.speed.report.markdown import milliseconds, number, table
from gateway.lab.speed.report.results import BEYOND, REPLICATION, Point, Results, mean

#: Share of the processors from which on they, and not the key managers, may be what limits.
CROWDED = 0.9
_AT_THE_BOUND = 0.9  # of what the costs allow; what is left is beginning and ending

#: By the number of servers: clients that don't cache, clients that do, and those that don't through the gateway.
_COMPARED: Final = {
    "1": ("single_fresh", "single_kept", "gateway_single"),
    "2": ("two_fresh", "two_kept", "gateway_two"),
}


def gains(results: Results, operations: Iterable[str]) -> str:
    """What the gateway makes of clients that don't cache, beside what it could at the most."""
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
Means over all numbers of clients but one. The gateway keeps sessions for clients that don't; it can't do
more than clients that cache, so that the ratio can't be greater than (handshake + operation) / operation: the bound
follows from the calibrated costs alone, how near the gateway comes to it is measured.

{table(header, rows)}"""


def _mean_of_many(rates: Mapping[int, float]) -> float:
    """The mean without the single client's rate, which has the server wait for it."""
    return mean(rate for clients, rate in rates.items() if clients > 1)


def operation_section(results: Results, operation: str, charts_at: str) -> str:
    """One operation: its chart, and the note's numbers beside those that were measured."""
    rates = {case: results.rates(operation, case) for case in CASES}
    header = ["clients"]
    for title in ("single, not cached", "single, cached", "two, not cached", "two, cached"):
        header += [f"{title}: note", "here"]
    header += ["gateway, one server", "gateway, two servers"]
    rows = []
    for clients in sorted({clients for case in rates.values() for clients in case}):
        row = [str(clients)]
        for case in note.COLUMNS:
            row.append(number(note.per_minute(operation, case, clients)) if clients in note.CLIENTS else "-")
            row.append(number(rates[case].get(clients)))
        rows.append([*row, *(number(rates[case].get(clients)) for case in CASES if CASES[case].gateway)])
    allowed = ["**costs allow**"]
    for case in note.COLUMNS:
        allowed += ["", number(bound(operation, CASES[case]))]
    rows.append([*allowed, *(number(bound(operation, case)) for case in CASES.values() if case.gateway)])
    chart = f"speed-{operation.replace('_', '-')}.svg"
    return f"""\
### {OPERATIONS[operation]}

![Operations a minute over the number of clients: the note's, and here]({charts_at}/{chart})

{table(header, rows)}"""


def beyond(results: Results, charts_at: str) -> str:
    """More than ten clients, and what limits them."""
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

{table(header, rows)}
{verdicts}

Where the key managers are the limit, more clients are no more operations, but longer waits: the latency grows with the
number of clients.
"""


def _verdict(points: Sequence[Point]) -> str:
    """What limits a case, as far as its numbers tell."""
    first, last = points[0], points[-1]
    case = CASES[last.case]
    share = last.per_minute / bound(last.operation, case)
    if share >= _AT_THE_BOUND:
        limit = f"the key managers are the limit: {share:.0%} of what their costs allow"
    elif last.cpu >= CROWDED:
        limit = f"this machine's processors are the limit ({last.cpu:.0%} busy), at {share:.0%} of what the costs allow"
    else:
        limit = f"{share:.0%} of what the costs allow, with {last.cpu:.0%} of the processors busy"
    change = last.per_minute / first.per_minute if first.per_minute else 0
    return f"{case.title}: with {last.clients} clients {change:.2f} times the rate of {first.clients}; {limit}."


def replication(results: Results, charts_at: str) -> str:
    """What a synchronous partner costs, near and far."""
    points = results.all(REPLICATION)
    rows = []
    for case in dict.fromkeys(point.case for point in points):
        for clients in sorted({point.clients for point in points}):
            found = {point.variant: point for point in points if (point.case, point.clients) == (case, clients)}
            cells = [f"{number(one.per_minute)} ({milliseconds(one.p50)})" for one in map(found.get, VARIANTS) if one]
            rows.append((CASES[case].title, str(clients), *cells))
    header = ("Create AES-256 key", "clients", *VARIANTS.values())
    return f"""\
## Synchronous replication: the note's third recommendation

The note recommends that a master's synchronous partner be collocated with it, and did not measure it. Here, a write is
answered when the synchronous partner has it: operations a minute, and the median latency.

![Create, operations a minute by kind of replication]({charts_at}/speed-replication.svg)

{table(header, rows)}
A client by itself pays a remote partner's round trip with every write. The key manager does other things in that time,
so that many clients at once lose little: they wait for its HSM anyway.
"""
