"""Findings for programs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway import findings, log
from gateway.findings import Finding, parse

FILE = Path("/etc/gateway.toml")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/etc/gateway.toml: backends: missing; add", Finding(str(FILE), None, "backends", "missing; add")),
        (
            '/etc/gateway.toml: listeners["kmip"].bind: cannot listen on 127.0.0.1:1: Address in use; stop it',
            Finding(str(FILE), None, 'listeners["kmip"].bind', "cannot listen on 127.0.0.1:1: Address in use; stop it"),
        ),
        (
            'identities["a: \\"b].c"].match.subject_cn: is empty',
            Finding(None, None, 'identities["a: \\"b].c"].match.subject_cn', "is empty"),
        ),
        ('/etc/gateway.toml: admin."pass: word": x', Finding(str(FILE), None, 'admin."pass: word"', "x")),
        ('/etc/gateway.toml: "a b"."c": x', Finding(str(FILE), None, '"a b"."c"', "x")),
        ("/etc/gateway.toml: backends[0].name: x", Finding(str(FILE), None, "backends[0].name", "x")),
        ("/etc/gateway.toml: backends[this text].name: x", Finding(str(FILE), None, "backends[this text].name", "x")),
        ("/etc/gateway.toml: line 8, column 2: x", Finding(str(FILE), 8, None, "x")),
        ("/etc/gateway.toml: line 12: a.b: x", Finding(str(FILE), 12, "a.b", "x")),
        ("/etc/gateway.toml: line 2: is not UTF-8", Finding(str(FILE), 2, None, "is not UTF-8")),
        ("/etc/gateway.toml: is a directory; give: x", Finding(str(FILE), None, None, "is a directory; give: x")),
        ("OpenSSL 3.0 is too old: install 4", Finding(None, None, None, "OpenSSL 3.0 is too old: install 4")),
    ],
)
def test_a_line_has_a_file_a_setting_and_a_text(line: str, expected: Finding) -> None:
    assert parse(line, [Path("other.toml"), FILE]) == expected


def test_a_files_name_is_never_taken_for_a_setting() -> None:
    assert parse("client.pem: there is no such file", [FILE, Path("client.pem")]) == Finding(
        "client.pem", None, None, "there is no such file"
    )


def test_all_findings_are_one_object() -> None:
    found = json.loads(findings.document(["/etc/gateway.toml: a.b: x"], ["c: y"], [FILE]))
    assert found == {
        "mistakes": [{"file": str(FILE), "line": None, "key": "a.b", "message": "x"}],
        "warnings": [{"file": None, "line": None, "key": "c", "message": "y"}],
    }


def test_mistakes_are_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("error", "json")
    findings.log_mistakes(["/etc/gateway.toml: a.b: x", "/etc/gateway.toml: line 1: y"], [FILE])
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["event"], first["level"], first["file"]) == ("mistake in the configuration", "error", str(FILE))
    assert (first["key"], first["detail"]) == ("a.b", "x")
    assert (second["line"], second["key"], second["detail"]) == (1, None, "y")
