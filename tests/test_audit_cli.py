"""``kmip-gateway audit verify``: its output and its exit status."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.audit.chain import BEGINNING, Chain
from gateway.cli import main

KEY = b"k" * 32


def trail(key: bytes | None = None) -> bytes:
    chain = Chain(key)
    return (
        chain.seal(f'"time":"now","event":"start","previous":"{BEGINNING}"')
        + chain.seal('"time":"now","event":"request"')
        + chain.seal('"time":"now","event":"stop"')
    )


def verify(*arguments: object, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["audit", "verify", *map(str, arguments)], input=data)


def test_a_good_file_is_ok(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(trail())

    result = verify("--ended", path)

    assert result.exit_code == 0
    assert result.output.startswith("OK: 3 lines in 1 file(s), from line 1 to line 3")


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(trail().replace(b"request", b"nothing"))

    result = verify(path)

    assert result.exit_code == 1
    assert f"{path}:2: the hash of line 2 is wrong" in result.output


def test_standard_input_is_a_dash() -> None:
    assert verify("-", data=trail()).exit_code == 0


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    path, key = tmp_path / "audit.jsonl", tmp_path / "audit.key"
    path.write_bytes(trail(KEY))
    key.write_text(KEY.hex())

    assert verify("--key-file", key, path).exit_code == 0
    assert verify(path).exit_code == 1


@pytest.mark.parametrize("arguments", [["none.jsonl"], ["--key-file", "none.key", "-"], []])
def test_files_that_cannot_be_read_are_mistakes(arguments: list[str]) -> None:
    assert verify(*arguments).exit_code == 2
