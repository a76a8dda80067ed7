"""The sections of the page, of made-up results."""

from dataclasses import replace

import pytest
from kmip_lab.report import charts, note, page
from kmip_lab.report.cases import CASES, OPERATIONS
from kmip_lab.report.results import BEYOND, NOTE, Results

from lab.tests.kit.points import point
from lab.tests.kit.tables import rows


def test_the_notes_numbers_stand_beside_ours(results: Results) -> None:
    text = page.write(results)
    found = rows(text, "5")
    assert len(found) == len(OPERATIONS)
    for operation, cells in zip(OPERATIONS, found, strict=True):
        noted = [f"{note.per_minute(operation, case, 5):,}" for case in note.COLUMNS]
        here = [f"{results.rates(operation, case)[5]:,.0f}" for case in CASES]
        assert cells[1:9:2] == noted
        assert [*cells[2:9:2], *cells[9:]] == here


def test_the_ratio_and_its_bound(results: Results) -> None:
    found = rows(page.write(results).partition("## What the gateway changes")[2], OPERATIONS["get"])[:2]
    assert [cells[1] for cells in found] == ["1", "2"]
    assert [cells[4:6] for cells in found] == [["**9.3 x**", "9.3 x"]] * 2


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
def test_the_page_names_the_limit_of_a_case(
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


def test_the_page_has_the_notes_rows_also_without_measurements(results: Results) -> None:
    text = page.write(results)
    for clients in note.CLIENTS:
        found = rows(text, str(clients))
        assert len(found) == len(OPERATIONS)
        if clients not in {1, 5}:
            assert {cell for cells in found for cell in [*cells[2:9:2], *cells[9:]]} == {"-"}


def test_the_page_compares_measured_rates_with_the_notes(results: Results) -> None:
    text = page.write(results).partition("### How near")[2]
    ((_, *cells),) = rows(text, OPERATIONS["get"])[:1]
    beside = [results.rates("get", case)[5] / note.per_minute("get", case, 5) for case in note.COLUMNS]
    assert cells == [f"{one:.2f}" for one in beside]
    assert "-13% to +20% of the note's means" in text
    assert "slower than several in 5 of 5 tables" in text
    assert "faster than several in\n  4 of 5" in text


@pytest.mark.parametrize(("rate", "words"), [(0.98, "-2% with 5 clients."), (0.7, "-30% with 5 clients.")])
def test_the_change_by_a_remote_partner_follows_from_the_table(results: Results, rate: float, words: str) -> None:
    results.points[:] = [
        replace(one, per_minute=one.per_minute * rate) if (one.variant, one.clients) == ("remote", 5) else one
        for one in results.points
    ]
    assert f"* Two load-balanced servers (cached): +0% with 1 client, {words}" in page.write(results)
