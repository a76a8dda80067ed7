"""The charts, of made-up results."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from kmip_lab.report import charts
from kmip_lab.report.results import Results


def test_all_lines_lie_within_their_charts(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for name in charts.files(results):
        drawn = (tmp_path / "one" / name).read_bytes()
        assert drawn == (tmp_path / "two" / name).read_bytes()
        assert ET.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own
        assert b"dc:date" not in drawn
