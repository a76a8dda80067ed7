"""The page, of made-up results and of those in the documentation."""

from dataclasses import replace
from pathlib import Path

from kmip_lab.report import charts, page
from kmip_lab.report.cases import OPERATIONS
from kmip_lab.report.results import NOTE, Results

from lab.tests.kit.points import point
from lab.tests.kit.tables import rows

DOCS = Path(__file__).parents[3] / "docs"
CHARTS = [
    *("speed-get.svg", "speed-wrap.svg", "speed-create.svg", "speed-create-rsa.svg", "speed-create-ecc.svg"),
    *("speed-beyond-ten.svg", "speed-replication.svg"),
]


def test_all_tables_have_as_many_cells_in_every_row(results: Results) -> None:
    table: list[int] = []
    for line in [*page.write(results).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line.count("|"))
        else:
            assert len(set(table)) <= 1
            table = []


def test_the_page_shows_exactly_the_charts_that_are_drawn(results: Results) -> None:
    text = page.write(results)
    assert list(charts.files(results)) == CHARTS
    assert all(f"(charts/{name})" in text for name in charts.files(results))


def test_the_page_reports_a_gateway_that_goes_on_opening_sessions(results: Results) -> None:
    assert "It opened no session in any measurement." in page.write(results)
    results.points.append(replace(point(NOTE, "get", "gateway_two", 7), opened=3))
    assert "In 1 measurements the gateway went on opening sessions: 3 at the most (Get AES-256" in page.write(results)


def test_the_page_reports_busy_processors_and_errors(results: Results) -> None:
    assert "In none of" in page.write(results)
    results.points.append(replace(point(NOTE, "wrap", "two_kept", 7, cpu=0.99), errors=3))
    text = page.write(results)
    assert "In 1 of" in text
    assert rows(text, OPERATIONS["wrap"])[-1][2:] == ["99%", "Two load-balanced servers (cached), 7 clients", "3"]


def test_the_page_in_docs_is_written_from_the_results_in_docs() -> None:
    results = Results.read(DOCS / "speed-report.json")
    assert (DOCS / "speed-report.md").read_text() == page.write(results)
    assert all((DOCS / "charts" / name).exists() for name in charts.files(results))
