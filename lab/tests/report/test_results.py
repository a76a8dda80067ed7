"""The file of results."""

from pathlib import Path

import pytest
from kmip_lab.report.results import Results, UnreadableResultsError


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"points": [{}]}'])
def test_a_file_that_holds_no_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UnreadableResultsError, match=r"holds no results; give a file that --save has written"):
        Results.read(path)


def test_results_are_the_same_after_writing_and_reading(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
