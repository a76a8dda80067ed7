"""Comparisons as JSON, read again, alone and gathered."""

import json
from pathlib import Path

import click
import pytest
from kmip_lab.compare.figures import Sample
from kmip_lab.compare.load import LoadResult
from kmip_lab.compare.records import Comparison, as_json, read

MONDAY = Comparison(["2 processors", "5 rounds"], [Sample("kept-1", "gateway", 0, LoadResult(4000, 1.0, p50=0.001))])
TUESDAY = Comparison(["4 processors"], [Sample("idle", "nginx", 2, LoadResult(1050, memory=91234.6))])


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "monday.json"
    file.write_text(as_json([MONDAY]))
    assert read([file]) == [MONDAY]
    (run,) = json.loads(file.read_text())["runs"]
    assert run == {"case": "kept-1", "proxy": "gateway", "round": 0, "operations": 4000, "seconds": 1.0, "p50": 0.001}


def test_several_comparisons_are_gathered_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    file.write_text(as_json([MONDAY, TUESDAY]))
    assert [comparison.about for comparison in read([file])] == [MONDAY.about, TUESDAY.about]
    assert len(read([file, file])) == 4


def test_numbers_are_rounded_and_every_run_has_a_line() -> None:
    text = as_json([TUESDAY])
    assert '"operations": 1050, "memory": 91235.0}\n' in text
    assert {each["outcome"] for each in json.loads(text)["limits"]} == {"not checked"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not the output of kmip-lab compare --json"),
        ("[]", "not the output of kmip-lab compare --json"),
        ('{"runs": [{"case": "kept"}], "about": []}', "not the output of kmip-lab compare --json"),
        ("{}", "not the output of kmip-lab compare --json"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(click.ClickException, match=f"other.json: .*{said}"):
        read([file])
