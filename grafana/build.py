"""Build the dashboards and the alerts: ``python -m grafana.build`` writes all their files.

Tests compare the files with the results of this program.
"""

from pathlib import Path
from typing import Final

from grafana.alerts import operator_rules, rules, runbook
from grafana.dashboards import DASHBOARDS, rendered

HERE: Final = Path(__file__).parent


def files() -> dict[Path, str]:
    """Return the text of every file that is made here."""
    root = HERE.parent
    return {
        **{HERE / "dashboards" / f"{dashboard.uid}.json": rendered(dashboard) for dashboard in DASHBOARDS},
        HERE / "alerts" / "kmip-gateway.rules.yml": rules(),
        root / "config" / "kubernetes" / "monitoring" / "prometheus-rule.yaml": operator_rules(),
        root / "docs" / "alerts.md": runbook(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
