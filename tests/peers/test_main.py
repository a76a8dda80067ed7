"""``make peers``: what it prints, its exit status, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.processes import wait_until
from tests.peers import __main__ as program
from tests.peers.build import Software
from tests.peers.peer import ClientPeer, ServerPeer
from tests.peers.run import PeerError
from tests.peers.trial import Difference, Outcome, Trial

SERVER = ServerPeer(Software("a server", "1.0", "C"), lambda *_: pytest.fail("not started"))
ONE, TWO = (
    Trial(ClientPeer(Software(name, "1.0", "C"), "all", lambda *_: []), SERVER) for name in ("client one", "client two")
)


@pytest.fixture
def page_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the page of two trials that are good."""
    path = tmp_path / "compatibility.md"
    monkeypatch.setattr(program, "TRIALS", (ONE, TWO))
    monkeypatch.setattr(program, "_PAGE", path)
    monkeypatch.setattr(program, "run_trial", lambda trial, *_: Outcome(trial, ("get: 1",)))
    return path


def outcome_of(trial: Trial, outcome: Outcome | Exception) -> Callable[..., Outcome]:
    def run(each: Trial, *_: object) -> Outcome:
        if each is not trial:
            return Outcome(each, ("get: 1",))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run


def test_good_trials_are_saved(page_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--save"]) == 0
    assert "client two" in page_file.read_text()
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 trials ran; 0 left out, 0 failed"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(ONE, ("get: 1",), (Difference(2, "get: 1", "get: 2", ""),)), "  2 TLS workers: UNEXPECTED"),
        (PeerError("the driver hangs"), "client one to a server: FAILED: the driver hangs"),
        (AssertionError("the gateway's start"), "client one to a server: FAILED: the gateway's start"),
        (OSError("no space"), "client one to a server: FAILED: no space"),
    ],
)
def test_a_failed_trial_fails_the_run_by_name_and_the_others_run(
    page_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome | Exception,
    text: str,
) -> None:
    monkeypatch.setattr(program, "run_trial", outcome_of(ONE, outcome))
    assert program.main(["--save"]) == 1
    assert not page_file.exists()
    lines = capsys.readouterr().out.splitlines()
    assert text in lines
    assert "client two to a server: 1 results, 0 of them errors, 0 differences, 0 s" in lines
    assert "FAILED: client one to a server" in lines


def test_a_trial_that_is_left_out_is_named_and_does_not_fail(
    page_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "run_trial", outcome_of(TWO, Outcome(TWO, skipped="client two: go is not installed")))
    assert program.main(["--save"]) == 0
    assert "left out: client two: go is not installed" in page_file.read_text()
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [
        "LEFT OUT: client two to a server: client two: go is not installed",
        "1 of 2 trials ran; 1 left out, 0 failed",
    ]


def test_a_fault_that_is_not_noticed_fails_the_run(
    page_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = ONE._replace(faults=("cut", "mark"))
    monkeypatch.setattr(program, "TRIALS", (faulty, TWO))
    monkeypatch.setattr(program, "run_trial", outcome_of(faulty, Outcome(faulty, ("get: 1",), unnoticed=("mark",))))
    assert program.main(["--save"]) == 1
    assert not page_file.exists()
    lines = capsys.readouterr().out.splitlines()
    assert "  a gateway with the fault 'cut': noticed" in lines
    assert "  a gateway with the fault 'mark': NOT NOTICED" in lines
    assert "FAILED: client one to a server" in lines


@pytest.mark.usefixtures("page_file")
def test_without_time_everything_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--within", "-1"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "LEFT OUT: client one to a server: no time",
        "LEFT OUT: client two to a server: no time",
        "0 of 2 trials ran; 2 left out, 0 failed",
    ]


@pytest.mark.usefixtures("page_file")
def test_only_some_trials_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--only", "CLIENT TWO"]) == 0
    assert "client one" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "cleint"], "no trial has 'cleint' in its name; the names: client one to a server; client two"),
        (["--save", "--only", "two"], "--save needs all trials"),
        (["--save", "--within", "100"], "--save needs all trials"),
        (["two"], "unrecognized arguments: two"),
    ],
)
def test_a_wrong_option_is_refused(
    page_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as error:
        program.main(arguments)
    assert error.value.code == 2
    assert text in capsys.readouterr().err
    assert not page_file.exists()


def test_each_client_has_faults_to_notice() -> None:
    for fault in ("cut", "another"):
        noticing = {trial.client.software.name for trial in program.TRIALS if fault in trial.faults}
        assert noticing == {trial.client.software.name for trial in program.TRIALS}
    assert "mark" in program.TRIALS[0].faults


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_every_process_of_it(number: signal.Signals) -> None:
    mark = f"PEERS_TEST={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.peers", "--only", "PyKMIP to simulated"],
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: _has_driver(mark), "the start of a driver")
        process.send_signal(number)
        output, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Traceback" not in output + errors
    wait_until(lambda: not _processes(mark), "the end of all processes", 5)


def _has_driver(mark: str) -> bool:
    return any("peers/pykmip/driver.py" in command for command in _processes(mark))


def _processes(mark: str) -> list[str]:
    """Return the command lines of the processes with an environment variable."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
