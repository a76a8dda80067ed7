"""Short comparisons of real programs over real TLS, their output, and several of them gathered."""

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kmip_lab.compare import proxies, runner
from kmip_lab.compare.cases import CASES, EVEN_RATE
from kmip_lab.compare.command import compare
from kmip_lab.compare.proxies import INSTALL, missing


def run(*arguments: str) -> str:
    """Return the output; --no-pin, since tests may share a processor with other programs."""
    ended = CliRunner().invoke(compare, ["--no-pin", "--rounds", "1", "--seconds", "0.3", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def measured(*arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return every run, by case and proxy; each must have operations, and no errors."""
    said = json.loads(run("--json", *arguments))
    for each in said["runs"]:
        assert each["operations"] > 0
        assert not {"errors", "full_handshakes"} & each.keys()  # zeros are left out
    return {(each["case"], each["proxy"]): defaultdict(int, each) for each in said["runs"]}


def test_the_cpu_time_of_a_get_is_printed_on_kept_and_fresh_connections() -> None:
    printed = run("--proxy", "gateway", "--only", "kept", "--only", "fresh", "--markdown")
    assert printed.count("CPU us/Get") == 2
    assert len(re.findall(r"^\| gateway \|.* [0-9.]+ \([0-9.]+ to [0-9.]+\) \|$", printed, re.MULTILINE)) == 2


def test_the_gateway_is_measured_beside_direct_connections() -> None:
    only = [word for name in ("fresh", "kept-1") for word in ("--only", name)]
    found = measured("--proxy", "gateway", *only)
    proxies = {(case, proxy) for case in ("fresh", "kept-1") for proxy in ("gateway", "direct")}
    assert set(found) == {*proxies, ("kept", "direct")}  # the last is the ceiling of kept-1
    assert found["fresh", "gateway"]["cpu"] > 0
    assert found["fresh", "direct"]["cpu"] == 0
    assert 0 < found["kept-1", "gateway"]["p50"] <= found["kept-1", "gateway"]["p99"]


def test_an_even_load_sends_no_more_requests_than_its_rate() -> None:
    found = measured("--proxy", "gateway", "--only", "kept-even")
    assert set(found) == {("kept-even", "gateway"), ("kept-even", "direct"), ("kept", "direct")}
    waited = CASES["kept-even"].warm_up  # requests that were late then may be sent while it counts
    for proxy in ("gateway", "direct"):
        each = found["kept-even", proxy]
        assert each["operations"] <= EVEN_RATE * (each["seconds"] + waited + 1)
    assert found["kept-even", "gateway"]["cpu"] > 0


def test_a_load_is_repeated_if_the_gateway_opened_a_session_meanwhile() -> None:
    found = measured("--proxy", "gateway", "--only", "kept")
    assert found["kept", "gateway"]["opened"] == 0


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_haproxy_and_nginx_run_the_same_cases(name: str) -> None:
    if missing(name) is not None:
        pytest.skip(f"{missing(name)}: {INSTALL}")
    only = [word for case in ("resumed", "idle") for word in ("--only", case)]
    found = measured("--proxy", name, "--idle", "60", *only)
    assert {case for case, proxy in found if proxy == name} == {"resumed", "idle"}
    assert found["idle", name]["memory"] > 0


def test_clients_may_speak_tls_1_2() -> None:
    measured("--proxy", "gateway", "--only", "resumed", "--tls", "1.2")


def test_all_clients_get_the_key_from_backends_with_an_hsm() -> None:
    found = measured(
        "--proxy", "gateway", "--only", "hsm-full", "--seconds", "1"
    )  # several answers come at once, then none for a while
    assert set(found) == {("hsm-full", "gateway"), ("hsm-full", "direct"), ("fresh", "direct")}


def test_memory_of_idle_clients_is_printed_in_markdown() -> None:
    said = run("--proxy", "gateway", "--only", "idle", "--idle", "60", "--markdown")
    assert re.search(r"^\| gateway \| [0-9.]+ \([0-9.]+ to [0-9.]+\) \|$", said, re.MULTILINE)
    assert "not checked: case kept, nginx" in said


def test_a_missing_proxy_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(proxies, "_DIRECTORIES", os.devnull)
    said = run("--proxy", "haproxy", "--proxy", "nginx", "--only", "kept")
    assert f"HAProxy is not installed: it is left out. To install it: {INSTALL}" in said
    assert "nginx is not installed: it is left out." in said


def test_a_program_that_ends_by_itself_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROXIES", {"gateway": lambda _settings: proxies.CommandLines(["false"], [])})
    ended = CliRunner().invoke(compare, ["--proxy", "gateway", "--only", "kept"])
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1] == "Error: gateway ended by itself: without a word"


def test_core_and_workers_are_measured_apart_beside_one_process() -> None:
    found = measured("--tls-workers", "0,1,2", "--only", "kept")
    assert set(found) == {("kept", name) for name in ("gateway", "gateway-1", "gateway-2", "direct")}
    assert found["kept", "gateway"]["core_cpu"] == found["kept", "gateway"]["worker_cpu"] == 0
    for name in ("gateway-1", "gateway-2"):
        each = found["kept", name]
        assert each["core_cpu"] + each["worker_cpu"] <= each["cpu"] * 1.001  # the supervisor has a little, too
        assert each["core_cpu"] > 0
        assert each["worker_cpu"] > 0


def test_sessions_of_tls_1_3_resume_again_and_again_on_all_workers() -> None:
    found = measured("--tls-workers", "0,2", "--only", "resumed")
    assert {proxy for _case, proxy in found} == {"gateway", "gateway-2", "direct"}


@pytest.mark.parametrize("text", ["0,x", "", "-1"])
def test_a_list_of_worker_counts_that_is_none_is_refused(text: str) -> None:
    ended = CliRunner().invoke(compare, ["--tls-workers", text])
    assert ended.exit_code == 2
    assert "is no list of numbers such as 0,1,2" in ended.stderr


def test_a_directory_without_a_compiled_build_is_refused(tmp_path: Path) -> None:
    ended = CliRunner().invoke(compare, ["--compiled", str(tmp_path)])
    assert ended.exit_code == 2
    assert f"Invalid value for --compiled: {tmp_path} contains no compiled build of the gateway" in ended.stderr


@pytest.mark.skipif("COMPILED" not in os.environ, reason="make test-compiled E2E=lab/tests/compare runs it")
def test_the_compiled_build_is_measured_beside_the_source() -> None:
    found = measured("--proxy", "gateway", "--only", "kept", "--compiled", os.environ["COMPILED"])
    assert set(found) == {("kept", name) for name in ("gateway", "gateway-compiled", "direct")}
    assert found["kept", "gateway-compiled"]["cpu"] > 0


def test_saved_comparisons_are_gathered_without_measuring_again(tmp_path: Path) -> None:
    days = [tmp_path / "monday.json", tmp_path / "tuesday.json"]
    for day in days:
        day.write_text(run("--proxy", "gateway", "--only", "idle", "--idle", "60", "--json"))
    sizes = sorted(json.loads(day.read_text())["runs"][0]["memory"] / 1024 for day in days)
    said = run("--gather", "--markdown", *map(str, days))
    assert f"({sizes[0]:.1f} to {sizes[1]:.1f}) |" in said
    assert said.count("Other programs took") + said.count("2 comparisons. ") == 2


@pytest.mark.parametrize("arguments", [["--gather"], [__file__]])
def test_gathering_needs_the_option_and_files(arguments: list[str]) -> None:
    ended = CliRunner().invoke(compare, arguments)
    assert ended.exit_code == 2
    assert "--gather and files that --json has written belong together" in ended.stderr
