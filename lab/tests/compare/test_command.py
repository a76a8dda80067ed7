"""The comparison itself, short: real programs, real TLS, and what it says of them."""

import json
import os
import re
from typing import Any

import pytest
from click.testing import CliRunner
from kmip_lab.compare import places, proxies, report
from kmip_lab.compare.cases import CASES, EVEN_RATE, Backends
from kmip_lab.compare.command import compare
from kmip_lab.compare.figures import Figures, Sample
from kmip_lab.compare.load import Measured
from kmip_lab.compare.places import cores
from kmip_lab.compare.proxies import INSTALL, missing
from kmip_lab.compare.running import Plan


def run(*arguments: str) -> str:
    """What it prints; --no-pin, since tests may share a processor with others."""
    ended = CliRunner().invoke(compare, ["--no-pin", "--rounds", "1", "--seconds", "0.3", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def measured(*arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every run, by case and proxy; each must have done something, and nothing wrong."""
    said = json.loads(run("--json", *arguments))
    for each in said["runs"]:
        assert each["operations"] > 0
        assert each["errors"] == 0
        assert each["full_handshakes"] == 0
    return {(each["case"], each["proxy"]): each for each in said["runs"]}


def test_the_gateway_is_measured_beside_direct_connections() -> None:
    only = [word for name in ("fresh", "kept-1") for word in ("--only", name)]
    found = measured("--proxy", "gateway", *only)
    proxies = {(case, proxy) for case in ("fresh", "kept-1") for proxy in ("gateway", "direct")}
    assert set(found) == {*proxies, ("kept", "direct")}  # the last is what kept-1 is held against
    assert found["fresh", "gateway"]["cpu"] > 0
    assert found["fresh", "direct"]["cpu"] == 0
    assert 0 < found["kept-1", "gateway"]["p50"] <= found["kept-1", "gateway"]["p99"]


def test_an_even_load_asks_no_more_than_its_rate_says_of_whoever_answers() -> None:
    found = measured("--proxy", "gateway", "--only", "kept-even")
    assert set(found) == {("kept-even", "gateway"), ("kept-even", "direct"), ("kept", "direct")}
    waited = CASES["kept-even"].warm_up  # what was late then may be made up for while it counts
    for proxy in ("gateway", "direct"):
        each = found["kept-even", proxy]
        assert each["operations"] <= EVEN_RATE * (each["seconds"] + waited + 1)
    assert found["kept-even", "gateway"]["cpu"] > 0


def test_rates_that_were_given_are_not_compared() -> None:
    runs = [
        Sample(case, proxy, 0, Measured(4000, 1.0, p50=0.001, p99=0.002, cpu=0.1))
        for case in ("fresh", "kept-even")
        for proxy in ("gateway", "nginx")
    ]
    alone = [Sample(case, "direct", 0, Measured(9000, 1.0)) for case in ("fresh", "kept")]
    said = report.markdown(report.sheets(Figures([*runs, *alone])))
    assert "| fresh: rate |" in said
    assert "| fresh: p50 | 1.00 |" in said
    assert "| kept-even: CPU per Get | 1.00 |" in said
    assert "| kept-even: p99 | 1.00 |" in said
    assert "kept-even: rate" not in said


def test_times_are_not_compared_where_they_are_rates_that_do_not_count() -> None:
    """Not those of many clients that never wait; those of one client, or at a given rate, are the proxy's own."""
    runs = [
        Sample(case, proxy, 0, Measured(4000, 1.0, p50=0.001, p99=0.002, cpu=0.1))
        for case in ("fresh", "fresh-1", "kept-even")
        for proxy in ("gateway", "nginx")
    ]
    alone = [Sample(case, "direct", 0, Measured(7999, 1.0, p50=0.001)) for case in ("fresh", "kept")]
    said = report.markdown(report.sheets(Figures([*runs, *alone])))
    assert "| fresh: CPU per Get | 1.00 |" in said
    assert "fresh: p50" not in said
    assert "fresh: p99" not in said
    assert "| fresh-1: p50 | 1.00 |" in said
    assert "| kept-even: p99 | 1.00 |" in said
    assert "| gateway | (4000) | (1.00) | (2.00) | 25 |" in said
    assert "| direct | 7999 | 1.00 | - | - |" in said
    assert "| gateway | (4000) | 1.00 | 2.00 | 25 |" in said
    assert said.count("What is in brackets does not count") == 1


def test_a_load_is_run_again_where_the_gateway_opened_a_session_meanwhile() -> None:
    found = measured("--proxy", "gateway", "--only", "kept")
    assert found["kept", "gateway"]["opened"] == 0


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_the_others_do_the_same_work(name: str) -> None:
    if missing(name) is not None:
        pytest.skip(f"{missing(name)}: {INSTALL}")
    only = [word for case in ("resumed", "idle") for word in ("--only", case)]
    found = measured("--proxy", name, "--idle", "60", *only)
    assert {case for case, proxy in found if proxy == name} == {"resumed", "idle"}
    assert found["idle", name]["memory"] > 0


def test_clients_may_speak_tls_1_2() -> None:
    measured("--proxy", "gateway", "--only", "resumed", "--tls", "1.2")


def test_behind_an_hsm_everybody_gets_the_key() -> None:
    found = measured("--proxy", "gateway", "--only", "hsm-full", "--seconds", "1")  # its answers come in volleys
    assert set(found) == {("hsm-full", "gateway"), ("hsm-full", "direct"), ("fresh", "direct")}


def test_idle_clients_are_weighed_and_the_tables_can_be_pasted() -> None:
    said = run("--proxy", "gateway", "--only", "idle", "--idle", "60", "--markdown")
    assert re.search(r"^\| gateway \| [0-9.]+ \|$", said, re.MULTILINE)
    assert "not checked: case kept, nginx" in said


def test_what_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(proxies, "_PLACES", os.devnull)
    said = run("--proxy", "haproxy", "--proxy", "nginx", "--only", "kept")
    assert f"HAProxy is not installed: it is left out. To have it: {INSTALL}" in said
    assert "nginx is not installed: it is left out." in said


def test_a_program_that_ends_by_itself_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PROXIES", {"gateway": lambda _setting: proxies.Program(["false"], [])})
    ended = CliRunner().invoke(compare, ["--proxy", "gateway", "--only", "kept"])
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1] == "Error: gateway ended by itself: without a word"


def test_nobody_is_always_the_first_and_idle_clients_come_first() -> None:
    plan = Plan([CASES["kept"], CASES["idle"]], ["gateway", "nginx", "direct"], 2, 1.0, 100)
    turns = [(number, case.name, names) for number, case, names in plan.runs(Backends.FREE)]
    assert turns == [
        (0, "idle", ["gateway", "nginx"]),
        (0, "kept", ["gateway", "nginx", "direct"]),
        (1, "kept", ["nginx", "direct", "gateway"]),
    ]
    assert plan.steps() == 8


def test_a_proxy_has_a_processor_of_its_own_where_there_are_two() -> None:
    assert cores([3]).proxy is None
    assert (cores([0, 1]).proxy, cores([0, 1]).load, cores([0, 1]).backends) == ({0}, {1}, {1})
    assert (cores([0, 1, 4, 5]).load, cores([0, 1, 4, 5]).backends) == ({1}, {4, 5})
