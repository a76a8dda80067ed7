"""The page and the charts, of results that nobody measured."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from kmip_lab.speed.report import charts, note, page
from kmip_lab.speed.report.cases import CASES, OPERATIONS
from kmip_lab.speed.report.command import report
from kmip_lab.speed.report.results import BEYOND, NOTE, Results, UnreadableResultsError

from lab.tests.speed.report.conftest import point

DOCS = Path(__file__).parents[4] / "docs"
CHARTS = [
    *("speed-get.svg", "speed-wrap.svg", "speed-create.svg", "speed-create-rsa.svg", "speed-create-ecc.svg"),
    *("speed-beyond-ten.svg", "speed-replication.svg"),
]


def rows(text: str, beginning: str) -> list[list[str]]:
    """The cells of the table rows that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {beginning} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_notes_numbers_stand_beside_ours(results: Results) -> None:
    text = page.write(results)
    found = rows(text, "5")
    assert len(found) == len(OPERATIONS)
    for operation, cells in zip(OPERATIONS, found, strict=True):
        noted = [f"{note.per_minute(operation, case, 5):,}" for case in note.COLUMNS]
        here = [f"{results.rates(operation, case)[5]:,.0f}" for case in CASES]
        assert cells[1:9:2] == noted
        assert [*cells[2:9:2], *cells[9:]] == here


def test_all_tables_have_as_many_cells_in_every_row(results: Results) -> None:
    table: list[int] = []
    for line in [*page.write(results).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line.count("|"))
        else:
            assert len(set(table)) <= 1
            table = []


def test_the_ratio_and_its_bound(results: Results) -> None:
    found = rows(page.write(results).partition("## What the gateway changes")[2], OPERATIONS["get"])[:2]
    assert [cells[1] for cells in found] == ["1", "2"]
    assert [cells[4:6] for cells in found] == [["**9.3 x**", "9.3 x"]] * 2


def test_every_chart_of_the_page_is_drawn_and_the_other_way_round(results: Results) -> None:
    text = page.write(results)
    assert list(charts.files(results)) == CHARTS
    assert all(f"(charts/{name})" in text for name in CHARTS)


def test_parts_that_were_not_measured_are_not_on_the_page(results: Results) -> None:
    some = [one for one in results.points if one.part == NOTE and one.operation == "get"]
    only = replace(results, points=some, factors={"get": 1.0})
    text = page.write(only)
    assert list(charts.files(only)) == ["speed-get.svg"]
    assert "RSA" not in text.partition("## What the gateway changes")[2]
    assert "More than ten" not in text
    assert "recommendation" not in text


def test_numbers_of_clients_that_the_note_does_not_have(results: Results) -> None:
    results.points.append(point(NOTE, "get", "single_fresh", 12))
    ((_, noted, here, *others),) = rows(page.write(results), "12")
    assert (noted, here) == ("-", "787")
    assert set(others) == {"-"}


@pytest.mark.parametrize(
    ("rate", "cpu", "own", "opened", "words"),
    [
        (0.97, 0.95, 0.95, 9, "the key managers are the limit: 97% of what their costs allow"),
        (
            0.5,
            0.95,
            0.97,
            9,
            "the gateway is the limit, which has one processor (97% busy), at 50% of what the costs allow",
        ),
        (0.5, 0.95, 0.4, 9, "this machine's processors are the limit (95% busy), at 50% of what the costs allow"),
        (0.6, 0.6, 0.4, 600, "the key managers are the limit, at 60% of what the costs allow: handshakes took 31%"),
        (0.6, 0.5, 0.4, 0, "nothing is at its limit, at 60% of what the costs allow, with 50% of the processors busy"),
    ],
)
def test_the_page_says_what_limits(
    results: Results, rate: float, cpu: float, own: float, opened: int, words: str
) -> None:
    results.points[:] = [one for one in results.points if one.part != BEYOND]
    found = point(BEYOND, "get", "gateway_two", 80)
    spent = replace(found, per_minute=found.per_minute / 0.9 * rate, cpu=cpu, gateway_cpu=own, opened=opened)
    results.points.append(spent)
    text = page.write(results)
    assert words in text
    assert f"The gateway used {own:.0%} of a processor, and opened {opened or 'no'} sessions." in text
    assert rows(text, "Gateway, two servers (not cached)")[0][7:9] == [f"{own:.0%}", str(opened)]


def test_a_gateway_that_goes_on_opening_sessions_is_told(results: Results) -> None:
    assert "It opened none in any measurement." in page.write(results)
    results.points.append(replace(point(NOTE, "get", "gateway_two", 7), opened=3))
    assert "In 1 measurements it went on opening some: 3 at the most (Get AES-256" in page.write(results)


def test_all_of_the_notes_rows_are_there_also_those_that_were_not_measured(results: Results) -> None:
    text = page.write(results)
    for clients in note.CLIENTS:
        found = rows(text, str(clients))
        assert len(found) == len(OPERATIONS)
        if clients not in {1, 5}:
            assert {cell for cells in found for cell in [*cells[2:9:2], *cells[9:]]} == {"-"}


def test_how_near_it_comes_to_the_note_is_said_in_figures(results: Results) -> None:
    text = page.write(results).partition("### How near")[2]
    ((_, *cells),) = rows(text, OPERATIONS["get"])[:1]
    beside = [results.rates("get", case)[5] / note.per_minute("get", case, 5) for case in note.COLUMNS]
    assert cells == [f"{one:.2f}" for one in beside]
    assert "-13% to +20% of the note's means" in text
    assert "slower than several in 5 of 5 tables" in text
    assert "faster than several in\n  4 of 5" in text


@pytest.mark.parametrize(("rate", "words"), [(0.98, "-2% with 5 clients."), (0.7, "-30% with 5 clients.")])
def test_what_a_remote_partner_changes_is_what_the_table_has(results: Results, rate: float, words: str) -> None:
    results.points[:] = [
        replace(one, per_minute=one.per_minute * rate) if (one.variant, one.clients) == ("remote", 5) else one
        for one in results.points
    ]
    assert f"* Two load-balanced servers (cached): +0% with 1 client, {words}" in page.write(results)


def test_busy_processors_and_errors_are_told(results: Results) -> None:
    assert "In none of" in page.write(results)
    results.points.append(replace(point(NOTE, "wrap", "two_kept", 7, cpu=0.99), errors=3))
    text = page.write(results)
    assert "In 1 of" in text
    assert rows(text, OPERATIONS["wrap"])[-1][2:] == ["99%", "Two load-balanced servers (cached), 7 clients", "3"]


def test_no_line_leaves_its_chart(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what was measured is more than the note has, on the same scale."""
    figures: list[Any] = []

    def keep(figure: Any, _panel: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(charts, "_svg", keep)
    points = [replace(one, per_minute=10 * one.per_minute) for one in results.points]
    for draw in charts.files(replace(results, points=points)).values():
        draw()

    for panel in (panel for figure in figures for panel in figure.axes):
        low, high = panel.get_ylim()
        assert all(low <= value <= high for line in panel.lines for value in line.get_ydata())


def test_charts_are_the_same_for_the_same_numbers(results: Results, tmp_path: Path) -> None:
    charts.write(results, tmp_path / "one")
    charts.write(results, tmp_path / "two")
    for name in CHARTS:
        drawn = (tmp_path / "one" / name).read_bytes()
        assert drawn == (tmp_path / "two" / name).read_bytes()
        assert ET.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own
        assert b"dc:date" not in drawn


def test_results_are_kept_in_a_file_and_the_page_written_from_it(results: Results, tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    results.write(kept)
    assert Results.read(kept) == results
    done = CliRunner().invoke(report, [f"--from={kept}", f"--directory={tmp_path / 'docs'}"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "docs" / "speed-report.md").read_text() == page.write(results)
    assert {path.name for path in (tmp_path / "docs" / "charts").iterdir()} == set(CHARTS)


def test_the_page_in_the_documentation_is_what_its_results_say() -> None:
    results = Results.read(DOCS / "speed-report.json")
    assert (DOCS / "speed-report.md").read_text() == page.write(results)
    assert all((DOCS / "charts" / name).exists() for name in charts.files(results))


def test_a_report_with_errors_has_an_exit_status_for_them(results: Results, tmp_path: Path) -> None:
    results.points.append(replace(point(NOTE, "get", "two_kept", 7), errors=3))
    results.write(tmp_path / "results.json")
    done = CliRunner().invoke(report, [f"--from={tmp_path / 'results.json'}", f"--directory={tmp_path}"])
    assert done.exit_code == 1
    assert "3 operations failed" in done.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"points": [{}]}'])
def test_a_file_that_holds_no_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UnreadableResultsError, match=r"holds no results; give a file that --save has written"):
        Results.read(path)


def test_without_matplotlib_it_says_what_to_install(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(report, [])
    assert done.exit_code == 1
    assert done.stderr == "Error: charts need matplotlib; install it with: pip install 'kmip-gateway-lab[report]'\n"
    assert results.points
