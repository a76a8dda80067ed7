"""The comparison of a trial, and the page: no difference is lost."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.processes import Certificates
from tests.peers import pykmip, simulated
from tests.peers.build import Software
from tests.peers.page import HEAD, NOT_TRIED, page
from tests.peers.peer import ClientPeer, KnownDifference, ServerPeer, Target, lacking
from tests.peers.run import PeerError
from tests.peers.trial import Difference, Outcome, Trial, compare, run_trial

SOFTWARE = Software("a peer", "1.0", "C")
KNOWN = KnownDifference("mark: 16", "mark: 32", "the gateway marks it")
CLIENT = ClientPeer(SOFTWARE, "all", lambda _target, _build: [], (KNOWN,))
TRIAL = Trial(CLIENT, ServerPeer(SOFTWARE, lambda *_: pytest.fail("not started")))


def differences(direct: list[str], through: list[str]) -> list[Difference]:
    return list(compare(direct, through, 0, CLIENT.differences))


def test_equal_lines_do_not_differ() -> None:
    assert differences(["get: 32 bytes"], ["get: 32 bytes"]) == []


@pytest.mark.parametrize("through", [["get: 31 bytes"], [], ["get: 32 bytes", "more"]])
def test_a_changed_a_missing_and_a_further_line_differ(through: list[str]) -> None:
    (difference,) = differences(["get: 32 bytes"], through)
    assert difference.reason == ""
    assert not Outcome(TRIAL, differences=(difference,)).is_good


def test_a_known_difference_has_its_reason() -> None:
    (difference,) = differences(["mark: 16"], ["mark: 32"])
    assert difference.reason == "the gateway marks it"
    assert Outcome(TRIAL, differences=(difference,)).is_good


@pytest.mark.parametrize("through", ["mark: 48", "mark: error: refused", "get: 32 bytes", ""])
def test_another_line_in_the_place_of_the_known_one_has_no_reason(through: str) -> None:
    (difference,) = differences(["mark: 16"], [through])
    assert difference.reason == ""


def test_a_trial_whose_tool_is_missing_is_left_out_by_name(tmp_path: Path) -> None:
    absent = Software("a peer", "1.0", "C", lacking("no-such-tool"))
    outcome = run_trial(Trial(ClientPeer(absent, "", lambda *_: []), TRIAL.server), tmp_path, tmp_path)
    assert outcome.skipped == "a peer: no-such-tool is not installed"


def test_a_trial_without_a_network_is_left_out_by_name(tmp_path: Path) -> None:
    def fetch(_: Path) -> None:
        raise PeerError("go: downloading\ndial tcp: no such host")

    outcome = run_trial(
        Trial(ClientPeer(Software("a peer", "1.0", "Go", fetch=fetch), "", lambda *_: []), TRIAL.server),
        tmp_path,
        tmp_path,
    )
    assert outcome.skipped == "a peer could not be fetched: dial tcp: no such host"


def test_a_peer_that_does_not_compile_fails_the_trial(tmp_path: Path) -> None:
    def build(_: Path) -> None:
        raise PeerError("main.go:1: syntax error")

    broken = ClientPeer(Software("a peer", "1.0", "Go", build=build), "", lambda *_: [])
    with pytest.raises(PeerError, match="syntax error"):
        run_trial(Trial(broken, TRIAL.server), tmp_path, tmp_path)


def printing(text: str) -> ClientPeer:
    return ClientPeer(SOFTWARE, "", lambda *_: [sys.executable, "-c", f"import sys; sys.stdout.write({text!r})"])


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_a_driver_that_prints_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(PeerError, match="printed nothing"):
        printing(text).drive(Target((), tmp_path, tmp_path, tmp_path), tmp_path)


def test_a_driver_can_not_control_the_terminal(tmp_path: Path) -> None:
    lines = printing("get: \x1b[2J\x07\u2028 \x85\nput: ä\n").drive(Target((), tmp_path, tmp_path, tmp_path), tmp_path)
    assert lines == [r"get: \x1b[2J\x07\u2028 \x85", "put: ä"]


def test_a_trial_of_which_every_result_is_an_error_fails(tmp_path: Path) -> None:
    @contextmanager
    def running(_certificates: Certificates, _build: Path) -> Iterator[Sequence[int]]:
        yield [1]

    trial = Trial(printing("get: error: refused\nput: error: refused\n"), ServerPeer(SOFTWARE, running))
    with pytest.raises(PeerError, match="each result without the gateway is an error, such as 'get: error: refused'"):
        run_trial(trial, tmp_path / "builds", tmp_path / "certificates")


def test_the_page_has_each_outcome() -> None:
    marked = Difference(2, "mark: 16", "mark: 32", "the gateway marks it")
    outcome = Outcome(TRIAL, ("a: 1", "b: error: refused"), (marked,))
    text = page([outcome, Outcome(TRIAL, skipped="a peer: go is not installed")])
    assert "| a peer | 1.0 |  | a peer | 1.0 | 2 | 1 | equal | 1 different [1] |" in text
    assert "left out: a peer: go is not installed" in text
    assert "[1] The gateway marks it." in text
    assert "## Products that were not tried" in text
    rows = [line for line in text.partition("## What each")[0].splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {10}


def test_the_page_is_of_this_revision() -> None:
    written = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    assert written.startswith(HEAD), "make peers"
    assert written.endswith(NOT_TRIED.read_text()), "make peers"


def test_a_fault_that_a_driver_can_not_see_is_named(tmp_path: Path) -> None:
    client = ClientPeer(SOFTWARE, "", lambda *_: [sys.executable, "-c", "print('get: 32 bytes')"])
    outcome = run_trial(Trial(client, simulated.SERVER, faults=("cut",)), tmp_path / "b", tmp_path / "c", workers=())
    assert outcome.unnoticed == ("cut",)
    assert not outcome.is_good


def test_a_fault_is_noticed_by_a_driver_that_looks(tmp_path: Path) -> None:
    trial = Trial(pykmip.CLIENT, simulated.SERVER, faults=("cut", "another"))
    assert run_trial(trial, tmp_path / "b", tmp_path / "c", workers=()).unnoticed == ()
