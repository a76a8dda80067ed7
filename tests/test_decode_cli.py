"""``kmip-gateway decode``: forms, exit status and mistakes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.kit.messages import get, request

MESSAGE = request(get("7"))


def decode(*arguments: str, raw: bytes = MESSAGE) -> Result:
    return CliRunner().invoke(main, ["decode", *arguments, "-"], input=raw)


def test_prints_a_tree() -> None:
    result = decode(raw=MESSAGE.hex().encode())
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].strip() == 'Unique Identifier: "7"  (Text String)'


def test_prints_json_of_each_message() -> None:
    decoder = json.JSONDecoder()
    text = decode("--json", raw=MESSAGE * 2).stdout
    first, end = decoder.raw_decode(text)
    assert first == json.loads(text[end:])


def test_prints_xml() -> None:
    assert decode("--xml").stdout.startswith("<KMIP>\n  <RequestMessage>\n    <RequestHeader>")


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    assert CliRunner().invoke(main, ["decode", str(path)]).stdout == decode().stdout


@pytest.mark.parametrize("form", [[], ["--json"], ["--xml"]])
def test_a_mistake_is_one_line_with_the_byte(form: list[str]) -> None:
    result = decode(*form, raw=MESSAGE[:-4])
    assert result.exit_code == 1
    assert result.stderr == (
        f"<stdin>: byte 4: the length is {len(MESSAGE) - 8}, but {len(MESSAGE) - 12} bytes are left before the end of"
        " the bytes\n"
    )


def test_text_that_is_no_ttlv_is_a_mistake() -> None:
    result = decode(raw=b"hello, world")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "neither hexadecimal digits, nor a hex dump, nor base64" in result.stderr


def test_input_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.decode_cli._MAX_BYTES", 8)
    assert "more than 0 MiB" in decode().stderr
