"""The log: one line for each event, lost rather than waited for."""

import io
import json
import os
import sys
from collections.abc import Iterator

import pytest
import structlog

from gateway import log
from gateway.log import LossyFile


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


# Lines -------------------------------------------------------------------------------------------------------------


def test_an_event_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "text")

    log.get("upstream").bind(backend="atlanta").warning("can't open a session", reason="connect")

    (line,) = capsys.readouterr().err.splitlines()
    assert "can't open a session" in line
    assert "warning" in line
    assert "backend=atlanta" in line
    assert "reason=connect" in line
    assert "room=upstream" in line


def test_an_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")

    log.get("upstream").warning("can't open a session", reason="connect", detail="line one\nline two")

    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "can't open a session",
        "level": "warning",
        "room": "upstream",
        "reason": "connect",
        "detail": "line one\nline two",
    }


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_below_the_level_is_not_written(
    capsys: pytest.CaptureFixture[str], level: str, expected: list[str]
) -> None:
    log.configure(level, "json")
    logger = log.get("test")

    for write in (logger.debug, logger.info, logger.warning, logger.error):
        write("happened")

    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == expected


# Files that do not take it -------------------------------------------------------------------------------------------


def test_what_can_be_written_is_written() -> None:
    file = io.StringIO()
    lossy = LossyFile(file)

    lossy.write("a line\n")
    lossy.flush()

    assert file.getvalue() == "a line\n"
    assert lossy.dropped == 0


def test_a_full_disk_loses_lines_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123 - a device, with the buffering that stderr has
        monkeypatch.setattr(sys, "stderr", full)
        lossy = log.configure("info", "text")
        logger = log.get("test")

        for number in range(1000):
            logger.info("happened", number=number)

        assert lossy.dropped >= 1000
        _empty(full)


def test_a_full_disk_is_found_at_the_flush_too() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - as above, with a buffer
        lossy = LossyFile(full)

        lossy.write("a line\n")
        lossy.flush()

        assert lossy.dropped == 1
        _empty(full)


def test_a_closed_pipe_loses_lines_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        lossy = log.configure("info", "json")
        log.get("test").info("heard")
        os.close(reading)

        log.get("test").info("not heard")

        assert lossy.dropped >= 1
        _empty(pipe)


def _empty(file: io.TextIOWrapper) -> None:
    """Let a file that can't be written to be closed: what it holds goes to nobody."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
