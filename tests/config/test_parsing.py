"""Files that are no configuration at all. Mistakes within a table are in mistakes.txt."""

from pathlib import Path

import pytest

from gateway.config.parsing import parse
from gateway.errors import ConfigError
from tests.kit.wrong_files import put


def fault(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(path)
    (mistake,) = refused.value.mistakes
    assert mistake.startswith(f"{path}: ")
    assert mistake.isprintable()
    return mistake.removeprefix(f"{path}: ")


def test_line_ends_and_byte_order_marks_of_other_systems_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b'\xef\xbb\xbf[log]\r\nlevel\t=\t"info"\r\n')
    assert parse(path).tables == {"log": {"level": "info"}}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[admin]\nbind\n", 'line 2, column 5: there is no "=" after a key; write key = value'),
        (
            b"[admin]\n[admin]",
            'line 2, column 7: the section "admin" begins twice; put its settings below one heading [admin]',
        ),
        (
            b"[admin",
            "end of document: a heading does not end; write [section], or [[section]] for a table of a list",
        ),
        (b"a = [1,\n2\n", "end of document: a list does not end; add the bracket ] that closes it"),
        (b'a = """x\n', "end of document: a text does not end; add the quote that closes it"),
        (b"a = 'x\n", "end of document: a text does not end; add the quote that closes it"),
        (b'a = "x\x1b[0m"\n', "line 1, column 7: there is a control character; remove it"),
        (b"a = 1\n\x00", "line 2, column 1: no line begins so; write key = value, [section], or # and a comment"),
        (b"a = [1\n[b]\n", "line 2, column 1: "),
        (b"a = { b = 1 ]\n", "line 1, column 13: a table in braces does not end on its line; write it on one line,"),
        (b"a = 2026-02-31\n", "line 1, column 5: this is no value; put a text in double quotes"),
        (b"a = { b = 1 }\na.c = 2\n", "line 2, column 8: is not TOML: cannot mutate immutable namespace"),
        (b"a = 1\na = [\n1 ]\n", "line 3, column 4: a key is set twice in this table; leave one of them out"),
        (b"a = " + b"9" * 5000, "is not TOML: "),
        (b"a = " + b"[" * 50_000, "is nested too deeply; write it without nesting"),
        (b"# caf\xc3\xa9\n# caf\xe9\n", "line 2: is not UTF-8; save the file in UTF-8"),
        ("[log]\n".encode("utf-16"), "line 1: is not UTF-8; save the file in UTF-8"),
    ],
)
def test_text_that_is_not_toml_is_refused_with_its_line(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(data)
    assert fault(path).startswith(expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("directory", "is a directory; give the path of a configuration file"),
        ("pipe", "is not a file; give the path of a configuration file"),
        ("broken-link", "there is no such file; give the path of a configuration file"),
        ("looping-link", "can't be read (Too many levels of symbolic links); correct the path"),
        ("large", "has more than 16 MiB; give the path of a configuration file"),
        ("certificate", 'line 1, column 12: there is no "=" after a key; write key = value'),
    ],
)
def test_odd_files_are_no_configuration(tmp_path: Path, kind: str, expected: str) -> None:
    path = tmp_path / "gateway.toml"
    put(path, kind)
    assert fault(path) == expected


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.toml") == "there is no such file; give the path of a configuration file"
