"""The charts, in the note's form: operations a minute over the number of concurrent client processes."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import GatewayError
from kmip_lab.report import note
from kmip_lab.report.cases import CASES, OPERATIONS, VARIANTS
from kmip_lab.report.results import BEYOND, REPLICATION, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Mapping[str, Mapping[int, float]]
"""Operations a minute by number of clients, for each line by its title."""

#: Colours that differ also without seeing red and green (Okabe and Ito), and marks that differ without colours.
_STYLES: Final = {
    CASES["single_fresh"].title: ("#E69F00", "o", "-"),
    CASES["single_kept"].title: ("#0072B2", "s", "-"),
    CASES["two_fresh"].title: ("#CC79A7", "^", "-"),
    CASES["two_kept"].title: ("#56B4E9", "D", "-"),
    CASES["gateway_single"].title: ("#000000", "o", "--"),
    CASES["gateway_two"].title: ("#D55E00", "^", "--"),
}
_OTHERS: Final = (("#0072B2", "s", "-"), ("#E69F00", "o", "-"), ("#D55E00", "^", "-"))
_CLIENTS: Final = "Number of concurrent client processes"


class NoChartsError(GatewayError):
    """Charts can't be drawn here."""


def files(results: Results) -> dict[str, Callable[[], bytes]]:
    """Return the charts of an experiment: file names, and functions that draw SVG. These raise NoChartsError."""
    measured = [operation for operation in OPERATIONS if results.rates(operation, "single_fresh")]
    found: dict[str, Callable[[], bytes]] = {}
    for operation in measured:
        found[f"speed-{operation}.svg"] = partial(_note_chart, results, operation)
    if results.all(BEYOND):
        found["speed-beyond-ten.svg"] = partial(_beyond_chart, results)
    if results.all(REPLICATION):
        found["speed-replication.svg"] = partial(_replication_chart, results)
    return found


def check() -> None:
    """Raise NoChartsError if charts can't be drawn; to be called before an experiment rather than after it."""
    _figure(1.0)


def write(results: Results, directory: Path) -> None:
    """Draw all charts into a directory. Raises NoChartsError, OSError."""
    drawn = {name: draw() for name, draw in files(results).items()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        (directory / name).write_bytes(content)


def _note_chart(results: Results, operation: str) -> bytes:
    """Draw two panels with one scale: the note's numbers, and those measured here."""
    noted = {
        CASES[case].title: {clients: note.per_minute(operation, case, clients) for clients in note.CLIENTS}
        for case in note.COLUMNS
    }
    here = {case.title: results.rates(operation, name) for name, case in CASES.items()}
    figure = _figure(11.0)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, noted, "application note")
    _draw(right, here, "simulated key managers, and the gateway")
    figure.suptitle(OPERATIONS[operation])
    left.set_ylabel("Operations/minute")
    left.set_ylim(bottom=0)  # of both panels, and only now, since it fixes the top, too
    return _svg(figure, right)


def _beyond_chart(results: Results) -> bytes:
    cases = dict.fromkeys(point.case for point in results.all(BEYOND))
    rates = {
        CASES[case].title: {point.clients: point.per_minute for point in results.all(BEYOND, case=case)}
        for case in cases
    }
    waits = {
        CASES[case].title: {point.clients: 1000 * (point.p99 or 0) for point in results.all(BEYOND, case=case)}
        for case in cases
    }
    figure = _figure(11.0)
    left, right = figure.subplots(1, 2)
    _draw(left, rates, "Operations/minute")
    _draw(right, waits, "99 % of operations take up to, in ms", logarithmic=True)
    figure.suptitle("More than ten clients: Get AES-256 symmetric key")
    left.set_ylim(bottom=0)
    return _svg(figure, left)


def _replication_chart(results: Results) -> bytes:
    cases = list(dict.fromkeys(point.case for point in results.all(REPLICATION)))
    figure = _figure(11.0)
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for panel, case in zip(panels, cases, strict=True):
        points = results.all(REPLICATION, case=case)
        lines = {
            title: {point.clients: point.per_minute for point in points if point.variant == variant}
            for variant, title in VARIANTS.items()
        }
        _draw(panel, lines, CASES[case].title)
    panels[0].set_ylabel("Operations/minute")
    figure.suptitle("Replication: Create AES-256 key")
    panels[0].set_ylim(bottom=0)
    return _svg(figure, panels[0])


# Drawing ------------------------------------------------------------------------------------------------------------


def _figure(width: float) -> "Figure":
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra "report", which is not always installed
    except ModuleNotFoundError:
        raise NoChartsError("charts need matplotlib; install it with: pip install 'kmip-gateway-lab[report]'") from None
    return Figure(figsize=(width, 5.2), layout="constrained")


def _draw(panel: "Axes", lines: Lines, title: str, *, logarithmic: bool = False) -> None:
    for number, (name, rates) in enumerate(lines.items()):
        colour, mark, dashes = _STYLES.get(name, _OTHERS[number % len(_OTHERS)])
        clients = sorted(rates)
        values = [rates[count] for count in clients]
        panel.plot(clients, values, label=name, color=colour, marker=mark, linestyle=dashes, markersize=5)
    panel.set_title(title, fontsize="medium")
    panel.set_xlabel(_CLIENTS)
    panel.set_xticks(sorted({count for rates in lines.values() for count in rates}))
    if logarithmic:
        panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.grid(visible=True, axis="y", color="#DDDDDD")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _svg(figure: "Figure", legend_of: "Axes") -> bytes:
    """Return the same bytes for the same numbers: without a date, and with identifiers that are not random."""
    import matplotlib as mpl  # noqa: PLC0415 - as above

    handles, labels = legend_of.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    written = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "kmip-gateway", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
