"""The command ``report``."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from kmip_lab.cli import main
from kmip_lab.report import charts, page
from kmip_lab.report.cases import CASES, OPERATIONS
from kmip_lab.report.command import report
from kmip_lab.report.results import NOTE, Results

from lab.tests.kit.points import point


def test_the_command_measures_and_writes_the_page(tmp_path: Path) -> None:
    arguments = ["--scale=300", "--clients=2", "--only=create-ecc", "--note-only"]
    done = CliRunner().invoke(
        main, ["report", *arguments, f"--directory={tmp_path}", f"--save={tmp_path / 'results.json'}"]
    )
    assert done.exit_code == 0, done.output
    results = Results.read(tmp_path / "results.json")
    assert [one.case for one in results.points] == list(CASES)
    assert not any(one.errors for one in results.points)
    text = (tmp_path / "speed-report.md").read_text()
    assert OPERATIONS["create-ecc"] in text
    assert (tmp_path / "charts" / "speed-create-ecc.svg").exists()
    assert str(tmp_path) not in text


def test_results_are_kept_in_a_file_and_the_page_written_from_it(results: Results, tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    results.write(kept)
    assert Results.read(kept) == results
    done = CliRunner().invoke(report, [f"--from={kept}", f"--directory={tmp_path / 'docs'}"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "docs" / "speed-report.md").read_text() == page.write(results)
    assert {path.name for path in (tmp_path / "docs" / "charts").iterdir()} == set(charts.files(results))


def test_a_report_with_errors_has_an_exit_status_for_them(results: Results, tmp_path: Path) -> None:
    results.points.append(replace(point(NOTE, "get", "two_kept", 7), errors=3))
    results.write(tmp_path / "results.json")
    done = CliRunner().invoke(report, [f"--from={tmp_path / 'results.json'}", f"--directory={tmp_path}"])
    assert done.exit_code == 1
    assert "3 operations failed" in done.stderr


def test_without_matplotlib_it_says_what_to_install(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(report, [])
    assert done.exit_code == 1
    assert done.stderr == "Error: charts need matplotlib; install it with: pip install 'kmip-gateway-lab[report]'\n"
    assert results.points
