"""Alerts: the table of Prometheus rules, and the files that are made from it.

``python -m grafana.build`` writes alerts/kmip-gateway.rules.yml for Prometheus, config/kubernetes/monitoring for the
Prometheus operator, and docs/alerts.md, the runbook.
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from grafana import process_alerts, service_alerts
from grafana.alert_types import Alert, Group
from grafana.process_alerts import NOT_THERE
from grafana.service_alerts import RECORDS

GROUPS: Final = [*service_alerts.GROUPS, *process_alerts.GROUPS]
RUNBOOK: Final = "docs/alerts.md"
_HEAD: Final = "# Made by `python -m grafana.build` from grafana/*_alerts.py: change these, not this file.\n"
_DESCRIPTION: Final = """\
# Alerts

[grafana/alerts/kmip-gateway.rules.yml](../grafana/alerts/kmip-gateway.rules.yml) has these alerts as rules for
Prometheus. To use them, add the file to `rule_files` of Prometheus; with the Prometheus operator, run
`kubectl apply -k config/kubernetes/monitoring` ([deployment.md](deployment.md)). The job of the gateways must have
`kmip-gateway` in its name. `runbook_url` of each alert is the path of its section below: replace `docs/alerts.md` in
the rules by the address at which your operators read this page.

| severity | for whom |
|---|---|
| critical | wake somebody: clients get errors, or will within a day |
| warning | look within working hours: a reserve that keeps errors from clients is gone, or is about to go |
| info | no hurry: to know, or to plan |

While no key manager can be reached, other alerts of the same gateway say nothing new. In Alertmanager, have
`KmipGatewayNoBackend` inhibit them:

```yaml
inhibit_rules:
  - source_matchers: [alertname = KmipGatewayNoBackend]
    target_matchers: [alertname =~ "KmipGateway.+", alertname != KmipGatewayNoBackend]
    equal: [job, instance]
```

`python -m grafana.build` writes this page and the rules from one table (`grafana/service_alerts.py` and
`grafana/process_alerts.py`), which also has the thresholds. Each alert is tested, firing and silent, by `promtool test
rules` (`tests/grafana/test_alerts.py`); some of them also with a real Prometheus and a real gateway
(`tests/e2e/test_prometheus.py`).
"""


def rules(groups: Sequence[Group] = GROUPS) -> str:
    """Return the file of rules as Prometheus reads it."""
    return _HEAD + "groups:\n" + "".join(_rule_groups(groups))


def operator_rules() -> str:
    """Return the same rules as a PrometheusRule, for the Prometheus operator in Kubernetes."""
    head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: kmip-gateway\n"
    return _HEAD + head + "spec:\n  groups:\n" + textwrap.indent("".join(_rule_groups(GROUPS)), "  ")


def _rule_groups(groups: Sequence[Group]) -> Iterator[str]:
    yield "  - name: kmip-gateway-records\n    rules:\n"
    for record in RECORDS:
        yield f"      - record: {record.name}\n        expr: |\n{_indented(record.expression)}"
    for group in groups:
        yield f"  - name: kmip-gateway-{group.title.lower().replace(' ', '-')}\n    rules:\n"
        for alert in group.alerts:
            yield _alert_rule(alert)


def _alert_rule(alert: Alert) -> str:
    lines = [f"      - alert: {alert.name}", f"        expr: |\n{_indented(alert.expression)}"[:-1]]
    if alert.hold:
        lines.append(f"        for: {alert.hold}")
    lines += ["        labels:", f"          severity: {alert.severity}", "        annotations:"]
    # A string in JSON is a string in YAML, too.
    lines += [f"          {key}: {json.dumps(text, ensure_ascii=False)}" for key, text in annotations(alert).items()]
    return "\n".join(lines) + "\n"


def annotations(alert: Alert) -> dict[str, str]:
    """Return the annotations of an alert; ``summary`` is a template, which Prometheus fills in."""
    return {
        "summary": alert.summary,
        "description": alert.meaning,
        "remedy": alert.remedy,
        "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
    }


def _indented(expression: str) -> str:
    return textwrap.indent(expression, " " * 10) + "\n"


def runbook() -> str:
    """Return docs/alerts.md."""
    parts = [_DESCRIPTION]
    for group in GROUPS:
        parts.append(f"\n## {group.title}\n")
        for alert in group.alerts:
            hold = f", for {alert.hold}" if alert.hold else ""
            parts.append(f"\n### {alert.name}\n\n**{alert.severity}**{hold}:\n\n```\n{alert.expression}\n```\n")
            parts += [f"\n{_wrapped(text)}\n" for text in (f"{alert.meaning}", f"**Remedy:** {alert.remedy}")]
    parts.append("\n## Records\n\nThe rules also record these, for the alerts above and for the dashboards.\n\n")
    parts.append("| record | meaning |\n|---|---|\n")
    parts += [f"| `{record.name}` | {record.meaning} |\n" for record in RECORDS]
    parts.append("\n## Alerts that there are not\n\n")
    parts.append("Other proxies have these alerts; here they have no meaning, or another alert covers them.\n\n")
    parts += [f"{_wrapped(f'* **{name}**: {reason}', '  ')}\n" for name, reason in NOT_THERE.items()]
    return "".join(parts)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 125, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def every_alert() -> Iterator[Alert]:
    """Yield the alerts of all groups."""
    for group in GROUPS:
        yield from group.alerts
