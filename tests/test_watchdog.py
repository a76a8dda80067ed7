"""The watchdog: event loops that stand still, and processes that were stopped as a whole."""

import os
import signal
import subprocess
import sys
import time

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from gateway.watchdog import STUCK, Watchdog


def watching(limit: float, ends: list[int]) -> tuple[Watchdog, LogCapture]:
    said = LogCapture()
    logger = structlog.wrap_logger(None, processors=[said], wrapper_class=structlog.make_filtering_bound_logger(0))
    return Watchdog(limit, logger, end=ends.append), said


def stand_still(seconds: float) -> None:
    secret = "never logged"  # noqa: F841 - values of variables are not in the log
    time.sleep(seconds)


async def test_an_event_loop_that_stands_still_is_logged_and_ended(nursery: trio.Nursery) -> None:
    ends: list[int] = []
    watchdog, said = watching(0.4, ends)
    nursery.start_soon(watchdog.run)
    await trio.sleep(0.1)
    stand_still(2.0)
    assert ends == [STUCK]
    first, last = said.entries
    assert first["event"].startswith("event loop stands still: report this bug")
    assert "in stand_still" in first["exception"]
    assert "time.sleep(seconds)" in first["exception"]
    assert "never logged" not in first["exception"]
    assert last["event"] == "event loop stands still: ending this process"
    nursery.cancel_scope.cancel()


async def test_an_event_loop_that_runs_is_left_alone(nursery: trio.Nursery) -> None:
    ends: list[int] = []
    watchdog, said = watching(4.0, ends)
    nursery.start_soon(watchdog.run)
    await trio.sleep(5)
    assert (ends, said.entries) == ([], [])
    nursery.cancel_scope.cancel()


async def test_no_limit_is_no_watchdog() -> None:
    with trio.fail_after(5):
        await watching(0, [])[0].run()


_PROGRAM = """
import sys, time
import trio
from gateway import log
from gateway.watchdog import Watchdog

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog(2.0, log.get("core")).run)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        if sys.argv[1] == "stand still":
            time.sleep(60)
        nursery.cancel_scope.cancel()

log.configure("info", "text")
trio.run(main)
"""


def program(how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("log_is_read", [True, False])
def test_a_process_ends_itself_with_a_status_of_its_own(log_is_read: bool) -> None:
    with program("stand still") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdout.readline()
        if not log_is_read:
            process.stderr.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(30) == STUCK
        if log_is_read:
            said = process.stderr.read()
            assert "in main" in said
            assert "event loop stands still: ending this process" in said


def test_a_process_that_was_stopped_as_a_whole_goes_on() -> None:
    with program("go on") as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(1)
        _said, wrong = process.communicate("go\n", timeout=30)
        assert process.returncode == 0, wrong
        assert wrong == ""
