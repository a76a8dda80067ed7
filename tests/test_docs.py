"""The documents name things that exist: tests in docs/security.md, and files behind links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
SECURITY: Final = ROOT / "docs" / "security.md"
_TEST: Final = re.compile(r"`((?:lab/)?tests/[\w/]+\.py)?(?:::(test_\w+))?`")
_LINK: Final = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def rows() -> list[list[str]]:
    """Return the cells of each row in the table of what is defended."""
    section = SECURITY.read_text().partition("\n## What is defended\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """Yield the file and the function of each test in a text; a name without a file is in the file before it."""
    file = ""
    for found in _TEST.finditer(text):
        file = found[1] or file
        if found[1] or found[2]:
            yield file, found[2] or ""


def functions_of(file: str) -> set[str]:
    path = ROOT / file
    if not path.is_file():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_defence_has_a_threat_and_a_test() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row
        assert [test for _file, test in named_tests(row[2]) if test], f"no test is named: {row[0]}"


def test_tests_named_in_docs_security_exist() -> None:
    named = set(named_tests(SECURITY.read_text()))
    missing = [f"{file}::{test}" for file, test in named if test and test not in functions_of(file)]
    missing += [file for file, _test in named if not (ROOT / file).is_file()]
    assert sorted(missing) == []


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_between_documents_lead_to_files(document: Path) -> None:
    links = _LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []
