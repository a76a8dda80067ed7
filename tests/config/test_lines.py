"""Lines of settings."""

import tomllib

import pytest

from gateway.config.lines import line_of

TEXT = """\
verbose = true
[log]  # of events
  level = "info"
  format="text"

[[backends]]
name = "one" # name = "two"
# ca = "kms.pem"
hosts = [
  "a = 1",
]
[[ backends ]]
name = "two"
match.subject_cn = "x"

[backends.match]
"san dns" = "y"
[zoo]
"""


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (("verbose",), 1),
        (("log",), 2),
        (("log", "level"), 3),
        (("log", "format"), 4),
        (("log", "missing"), 2),
        (("backends",), 6),
        (("backends", 0), 6),
        (("backends", 0, "name"), 7),
        (("backends", 0, "ca"), 6),
        (("backends", 0, "a"), 6),
        (("backends", 1), 12),
        (("backends", 1, "name"), 13),
        (("backends", 1, "ca"), 12),
        (("zoo",), 18),
        (("missing",), None),
        (("missing", "key"), None),
    ],
)
def test_a_setting_has_its_line_and_a_missing_one_that_of_its_heading(
    at: tuple[str | int, ...], expected: int | None
) -> None:
    text = TEXT.replace('match.subject_cn = "x"\n', "\n")
    assert line_of(at, text, tomllib.loads(text)) == expected


def test_a_table_below_another_heading_is_not_found() -> None:
    text = TEXT.replace('match.subject_cn = "x"\n', "\n")
    assert line_of(("backends", 1, "match", "san dns"), text, tomllib.loads(text)) is None
    dotted = TEXT.partition("[backends.match]")[0]
    assert line_of(("backends", 1, "match", "subject_cn"), dotted, tomllib.loads(dotted)) == 14


@pytest.mark.parametrize(
    ("at", "text", "expected"),
    [
        (("b", "c"), 'a = """\n[b]\nc = 1\n"""\n[b]\nc = 2\n', None),
        (("b", 1, "c"), "a = 1\nb = [{ c = 1 }, { c = 2 }]\n[[d]]\n", 2),
        (("b",), "a = 1\n[b.c]\nd = 1\n", 2),
    ],
)
def test_a_line_that_could_be_wrong_is_left_out(at: tuple[str | int, ...], text: str, expected: int | None) -> None:
    assert line_of(at, text, tomllib.loads(text)) == expected
