"""The alerts: valid for promtool, each seen firing and silent, over metrics that exist, and with a remedy."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.metric_table import TABLE
from grafana.alert_types import Alert
from grafana.alerts import annotations, every_alert, rules
from grafana.dashboards import DASHBOARDS
from grafana.service_alerts import RECORDS
from tests.grafana.alert_cases import CASES, TARGET, Case
from tests.kit.metric_names import metrics_in

ROOT: Final = Path(__file__).parents[2]
PROMTOOL: Final = shutil.which("promtool")
ALERTS: Final = list(every_alert())
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


def promtool(*arguments: str) -> str:
    """Run promtool, which must succeed, and return its output."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "kmip-gateway.rules.yml"
    path.write_text(rules())

    assert f"SUCCESS: {len(ALERTS) + len(RECORDS)} rules found" in promtool("check", "rules", str(path))


@needs_promtool
def test_each_alert_fires_and_is_silent(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    tests = [_unit_test(alert, case) for alert in ALERTS for case in CASES[alert.name]]
    file = tmp_path / "tests.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}))

    promtool("test", "rules", str(file))


@needs_promtool
def test_a_case_that_is_wrong_fails(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    alert = ALERTS[0]
    wrong = [case._replace(fires=()) for case in CASES[alert.name] if case.fires]
    file = tmp_path / "tests.yml"
    tests = [_unit_test(alert, case) for case in wrong]
    file.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}))

    with pytest.raises(AssertionError, match=alert.name):
        promtool("test", "rules", str(file))


def _unit_test(alert: Alert, case: Case) -> dict[str, Any]:
    expected = []
    for firing in case.fires:
        labels = {**(TARGET if firing.has_target else {}), **firing.labels}
        texts = annotations(alert)
        texts["summary"] = re.sub(r"\{\{ \$value( \|[^}]*)? \}\}", firing.value, texts["summary"])
        for name, value in labels.items():
            texts["summary"] = texts["summary"].replace(f"{{{{ $labels.{name} }}}}", value)
        expected.append({"exp_labels": {"severity": alert.severity, **labels}, "exp_annotations": texts})
    return {
        "interval": "1m",
        "name": f"{alert.name} after {case.at} min",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": f"{case.at}m", "alertname": alert.name, "exp_alerts": expected}],
    }


def test_every_alert_has_cases_of_both_kinds() -> None:
    assert {alert.name for alert in ALERTS} == set(CASES)
    for name, cases in CASES.items():
        assert any(case.fires for case in cases), f"{name} is never seen firing"
        assert any(not case.fires for case in cases), f"{name} is never seen silent"


@each_alert
def test_an_alert_says_what_it_means_and_what_to_do(alert: Alert) -> None:
    assert re.fullmatch(r"KmipGateway([A-Z0-9][a-z0-9]*)+", alert.name)
    assert "{{" not in alert.meaning + alert.remedy
    for text in (alert.meaning, alert.remedy):
        assert text[0].isupper()
        assert text.endswith(".")
    assert len(alert.summary) < 130


@each_alert
def test_an_alert_is_over_metrics_that_exist(alert: Alert) -> None:
    used = list(metrics_in(alert.expression))
    assert used or re.search(r"\b(up|process_[a-z_]+)\{|job_instance:", alert.expression)
    _check(used)


def test_the_records_are_over_metrics_that_exist() -> None:
    for record in RECORDS:
        _check(list(metrics_in(record.expression)))


def _check(used: list[tuple[str, set[str]]]) -> None:
    existing = {row.name + suffix: set(row.labels) for _, row in TABLE.values() for suffix in ("", "_bucket", "_count")}
    for name, labels in used:
        assert name in existing, f"{name} does not exist"
        assert labels <= existing[name], f"{name} has no label {labels - existing[name]}"


@each_alert
def test_settings_that_an_alert_names_exist(alert: Alert) -> None:
    example = (ROOT / "config" / "gateway.toml").read_text()
    for table, key in re.findall(r"`([a-z_]+)\.([a-z_]+)[` ]", alert.meaning + alert.remedy):
        section = re.split(rf"^\[+{table}\]+$", example, maxsplit=1, flags=re.MULTILINE)
        assert len(section) == 2, f"there is no table {table}"
        assert re.search(rf"^(# )?{key} = ", section[1].split("\n[")[0], flags=re.MULTILINE), f"{table} has no {key}"


@each_alert
def test_log_lines_that_an_alert_names_exist(alert: Alert) -> None:
    documented = (ROOT / "docs" / "operations.md").read_text().partition("\n## Log lines\n")[2]
    for line in re.findall(r"log lines? `([^`]+)`(?: and `([^`]+)`)?", alert.remedy):
        for name in filter(None, line):
            assert f"`{name.removesuffix(' ...')}" in documented, f"no log line begins with {name}"


@each_alert
def test_panels_that_an_alert_names_exist(alert: Alert) -> None:
    titles = {row.title for each in DASHBOARDS for row in each.rows}
    titles |= {panel.title for each in DASHBOARDS for row in each.rows for panel in row.panels}
    titles |= {"accept", "refuse", "async", "least-outstanding", "the outcome is unknown"}  # settings, and messages
    assert set(re.findall(r'"([^"]+)"', alert.meaning + alert.remedy)) <= titles


@each_alert
def test_alerts_that_an_alert_names_exist(alert: Alert) -> None:
    names = {each.name for each in ALERTS}
    assert set(re.findall(r"KmipGateway\w+", alert.meaning + alert.remedy)) <= names
