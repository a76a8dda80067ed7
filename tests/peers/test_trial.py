"""The comparison of a trial, and the page: no difference is lost."""

import sys
from pathlib import Path

import pytest

from tests.peers.page import page
from tests.peers.peer import ClientPeer, PeerError, ServerPeer, Software, Target, lacking, run
from tests.peers.trial import Difference, Outcome, Trial, compare, run_trial

SOFTWARE = Software("a peer", "1.0", "C", lambda: None, lambda _: None)
CLIENT = ClientPeer(SOFTWARE, "all", lambda _target, _build: [], {"mark": "the gateway marks it"})
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


def test_a_trial_whose_tool_is_missing_is_left_out_by_name(tmp_path: Path) -> None:
    absent = Software("a peer", "1.0", "C", lacking("no-such-tool"), lambda _: None)
    outcome = run_trial(Trial(ClientPeer(absent, "", lambda *_: []), TRIAL.server), tmp_path, tmp_path)
    assert outcome.skipped == "a peer: no-such-tool is not installed"


def test_a_driver_that_fails_is_an_error_with_its_message(tmp_path: Path) -> None:
    client = ClientPeer(SOFTWARE, "", lambda *_: [sys.executable, "-c", "raise SystemExit('it broke')"])
    with pytest.raises(PeerError, match="ended with 1: it broke"):
        client.drive(Target((), tmp_path, tmp_path, tmp_path), tmp_path)


def test_a_driver_that_hangs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"took longer than 0\.2 s"):
        run([sys.executable, "-c", "import time; time.sleep(9)"], tmp_path, 0.2)


def test_the_page_has_each_outcome() -> None:
    marked = Difference(2, "mark: 16", "mark: 32", "the gateway marks it")
    text = page([Outcome(TRIAL, ("a", "b"), (marked,)), Outcome(TRIAL, skipped="a peer: go is not installed")])
    assert "| a peer | 1.0 |  | a peer | 1.0 | 2 | equal | 1 different [1] |" in text
    assert "left out: a peer: go is not installed" in text
    assert "[1] The gateway marks it." in text
    assert "## Products that were not tried" in text
