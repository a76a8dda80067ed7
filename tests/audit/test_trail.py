"""The audit trail in the event loop: begin and end, a full queue, commits, rotation."""

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from gateway.audit.trail import Trail
from gateway.audit.verify import Verifier
from gateway.config import AuditConfig
from gateway.errors import AuditError

KEY = b"k" * 32


def settings(folder: Path, **others: Any) -> AuditConfig:
    """Return settings, also below the least that a file may give."""
    return AuditConfig.model_construct(**{**AuditConfig().__dict__, "to": "file", "file": folder / "a.jsonl", **others})


@asynccontextmanager
async def opened(config: AuditConfig, key: bytes | None = None, log: LogCapture | None = None) -> AsyncIterator[Trail]:
    logger = structlog.wrap_logger(None, processors=[log or LogCapture()])
    trail = Trail(config, key, logger, version="1.2.3")
    trail.open()
    try:
        yield trail
    finally:
        await trail.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def events(path: Path) -> list[str]:
    return [line["event"] for line in lines(path)]


def verified(*paths: Path, key: bytes | None = None) -> str:
    """Return the fault in files, or an empty string."""
    verifier = Verifier(key)
    for path in paths:
        with path.open("rb") as file:
            verifier.read(path.name, file)
    return verifier.finish(ended=True)


def rotated(folder: Path) -> list[Path]:
    """Return the files that were moved away, the oldest first."""
    return sorted(folder.glob("a.jsonl.*"), key=lambda path: -int(path.suffix[1:]))


async def test_a_trail_begins_with_start_and_ends_with_stop(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)) as trail:
        trail.add_event("reload", {"result": "success"})

    assert events(tmp_path / "a.jsonl") == ["start", "reload", "stop"]
    (start, reload, _stop) = lines(tmp_path / "a.jsonl")
    assert (start["version"], start["continues"]) == ("1.2.3", False)
    assert reload["time"].endswith("Z")
    assert len(reload["time"]) == len("2026-01-01T00:00:00.000000Z")
    assert verified(tmp_path / "a.jsonl") == ""


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_restart_continues_the_chain_of_the_file(tmp_path: Path, key: bytes | None) -> None:
    for _ in range(3):
        async with opened(settings(tmp_path), key):
            pass

    found = lines(tmp_path / "a.jsonl")
    assert [line["seq"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["continues"] for line in found if line["event"] == "start"] == [False, True, True]
    assert verified(tmp_path / "a.jsonl", key=key) == ""


async def test_a_line_that_a_crash_cut_is_ended_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    async with opened(settings(tmp_path)):
        pass
    path.write_bytes(path.read_bytes() + b'{"seq":3,"time":"20')
    async with opened(settings(tmp_path)):
        pass

    assert json.loads(path.read_bytes().splitlines()[3])["incomplete"] == 19
    assert verified(path) == ""


async def test_a_key_begins_a_file_of_its_own(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)):
        pass
    async with opened(settings(tmp_path), KEY):
        pass

    assert lines(tmp_path / "a.jsonl")[0]["seq"] == 3
    assert verified(tmp_path / "a.jsonl.1") == ""
    assert verified(tmp_path / "a.jsonl", key=KEY) == ""


async def test_files_rotate_by_size_and_the_chain_goes_on(tmp_path: Path) -> None:
    async with opened(settings(tmp_path, max_size=2000, keep=50)) as trail:
        for number in range(100):
            trail.add_event("test", {"number": number})

    paths = rotated(tmp_path)
    assert len(paths) > 3
    assert all(path.stat().st_size < 2500 for path in paths)
    assert verified(*paths, tmp_path / "a.jsonl") == ""
    assert "missing" in verified(*paths[:1], *paths[2:])


async def test_a_reopen_writes_to_a_new_file_that_continues(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    async with opened(settings(tmp_path)) as trail:
        path.rename(tmp_path / "moved")
        await trail.reopen()
        trail.add_event("test", {})

    assert events(tmp_path / "moved") == ["start"]
    assert events(path) == ["file", "test", "stop"]
    assert verified(tmp_path / "moved", path) == ""


async def test_a_reopen_that_fails_says_so_and_writes_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    async with opened(settings(folder)) as trail:
        folder.rename(tmp_path / "moved")
        with pytest.raises(AuditError, match="No such file"):
            await trail.reopen()
        trail.add_event("test", {})

    assert events(tmp_path / "moved" / "a.jsonl") == ["start", "file", "test", "stop"]


async def test_a_committed_line_is_in_the_file(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)) as trail:
        number = await trail.commit('"event":"intent"')

        assert lines(tmp_path / "a.jsonl")[-1]["seq"] == number == trail.sequence


async def test_commits_of_many_requests_share_a_sync(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)) as trail, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(trail.commit, '"event":"intent"')

    assert events(tmp_path / "a.jsonl").count("intent") == 200


async def test_a_full_disk_refuses_commits_and_is_logged() -> None:
    log = LogCapture()
    config = AuditConfig.model_construct(**{**AuditConfig().__dict__, "to": "file", "file": Path("/dev/full")})
    async with opened(config, log=log) as trail, trio.open_nursery() as nursery:
        nursery.start_soon(trail.run)
        with pytest.raises(AuditError, match="No space left"):
            await trail.commit('"event":"intent"')
        sequence = trail.sequence
        with pytest.raises(AuditError, match="No space left"):
            await trail.commit('"event":"intent"')
        assert trail.sequence == sequence  # nothing more is queued
        assert trail.is_impaired
        await trio.sleep(1.1)
        nursery.cancel_scope.cancel()

    assert [entry["event"] for entry in log.entries] == [
        "audit trail cannot be written; trying again every second",
        "audit trail not written to its end",
    ]


async def test_a_commit_fails_although_a_second_attempt_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([OSError(5, "Input/output error")])

    def fail_once(_descriptor: int) -> None:
        for error in errors:
            raise error

    log = LogCapture()
    async with opened(settings(tmp_path), log=log) as trail, trio.open_nursery() as nursery:
        writer = trail._writer
        assert writer is not None
        monkeypatch.setattr("gateway.audit.sinks.os.fdatasync", fail_once)
        writer._on_progress = writer.hurry  # as another commit does: the second attempt follows at once
        with pytest.raises(AuditError, match="Input/output error"):
            await trail.commit('"event":"intent"')
        writer._on_progress = trail._on_progress
        assert not trail.is_impaired
        nursery.start_soon(trail.run)
        await trio.sleep(1.1)
        nursery.cancel_scope.cancel()

    assert [entry["event"] for entry in log.entries] == [
        "audit trail cannot be written; trying again every second",
        "audit trail is written again",
    ]


async def test_a_removed_file_refuses_the_commit_that_it_took(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    async with opened(settings(tmp_path)) as trail:
        await trail.commit('"event":"intent"')
        path.unlink()
        with pytest.raises(AuditError, match="the file was removed"):
            await trail.commit('"event":"intent"')
        with trio.fail_after(10):
            while trail.is_impaired:  # noqa: ASYNC110 - the writer's thread sets no event
                await trio.sleep(0.01)
        await trail.commit('"event":"intent","number":3')

    assert '"number":3' in path.read_text()


async def test_beyond_the_bound_records_are_lost_counted_and_announced() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "wb"), os.fdopen(reading, "rb") as reader:
        saved = os.dup(1)
        os.dup2(writing, 1)
        try:
            config = AuditConfig.model_construct(**{**AuditConfig().__dict__, "to": "stdout", "max_queued": 200_000})
            log = structlog.wrap_logger(None, processors=[LogCapture()])
            trail = Trail(config, None, log)
            trail.open()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        sent = 10_000
        for _ in range(sent):  # nobody reads
            trail.add('"event":"request"')
        assert 0 < trail.lost < sent
        assert trail.queued < 300_000
        data = bytearray()
        with trio.fail_after(20):
            while trail.queued:
                data += reader.read(1 << 20) or b""
                await trio.sleep(0.01)
        trail.add('"event":"request"')
        await trail.close()
        while chunk := reader.read(1 << 20):
            data += chunk

    verifier = Verifier(None)
    verifier.read("pipe", bytes(data).splitlines(keepends=True))
    assert verifier.finish(ended=True) == ""
    found = [json.loads(line) for line in bytes(data).splitlines()]
    assert sum(line.get("count", 0) for line in found) == trail.lost
    assert sum(line["event"] == "request" for line in found) == sent + 1 - trail.lost


async def test_times_are_those_of_the_clock(tmp_path: Path) -> None:
    began = time.time()
    async with opened(settings(tmp_path)):
        await trio.sleep(0.01)

    first, last = (line["time"] for line in lines(tmp_path / "a.jsonl"))
    assert first < last
    assert first[:10] == time.strftime("%Y-%m-%d", time.gmtime(began))


async def test_settings_change_in_place(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with opened(config) as trail:
        config.adopt(AuditConfig(requests="changes", on_failure="refuse", keep=3), ["requests", "on_failure", "keep"])
        trail.settings_changed()

        assert not trail.writes_all
        assert trail.refuses
        assert trail._writer is not None
        assert trail._writer.sink.keep == 3  # type: ignore[attr-defined]


async def test_refused_connections_are_summed_each_second(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)) as trail, trio.open_nursery() as nursery:
        nursery.start_soon(trail.run)
        for _ in range(50):
            trail.refused.add("kmip", "not_tls", "192.0.2.1:5000")
        await trio.sleep(1.1)
        nursery.cancel_scope.cancel()

    assert events(tmp_path / "a.jsonl") == ["start", *["connection"] * 10, "connections", "stop"]
