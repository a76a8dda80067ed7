"""Dashboards: the tables of rows and panels as the JSON that Grafana imports."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from grafana import backend_rows, capacity_rows, process_rows, service_rows
from grafana.panel_types import BACKEND, OWN, Panel, Row, Steps

_WIDTH: Final = 24  # of Grafana's grid
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_TAG: Final = "kmip-gateway"


class Dashboard(NamedTuple):
    """A dashboard; ``uid`` is also the name of its file, and stays the same for ever: links lead to it."""

    uid: str
    title: str
    since: str
    rows: Sequence[Row]


class Annotation(NamedTuple):
    """An event that is drawn as a line into all panels; if ``is_time``, the value is its Unix time in ms."""

    name: str
    color: str
    expression: str
    text: str
    is_time: bool = False


DASHBOARDS: Final = [
    Dashboard("kmip-gateway", "KMIP gateway", "now-1h", [*service_rows.ROWS, *backend_rows.ROWS, *process_rows.ROWS]),
    Dashboard("kmip-gateway-capacity", "KMIP gateway: capacity", "now-7d", capacity_rows.ROWS),
]
ANNOTATIONS: Final = [
    Annotation(
        "Configuration reloaded",
        "blue",
        f"kmip_gateway_config_last_reload_success_timestamp_seconds{{{OWN}}} * 1000",
        "{{instance}} has read its configuration",
        is_time=True,
    ),
    Annotation(
        "TLS worker restarted",
        "red",
        f"changes(kmip_gateway_worker_restarts_total{{{OWN}}}[1m]) > 0",
        "{{instance}}: TLS worker {{worker}} has started again",
    ),
    Annotation(
        "State of a key manager changed",
        "orange",
        f"kmip_gateway_backend_state{{{BACKEND}}} == 1 unless kmip_gateway_backend_state{{{BACKEND}}} offset 1m == 1",
        "{{instance}}: {{backend}} is {{state}}",
    ),
]
VARIABLES: Final = {
    "job": "label_values(kmip_gateway_build_info, job)",
    "instance": 'label_values(kmip_gateway_build_info{job=~"$job"}, instance)',
    "backend": f"label_values(kmip_gateway_backend_up{{{OWN}}}, backend)",
    "identity": f"label_values(kmip_gateway_backend_identity_up{{{OWN}}}, identity)",
}


def rendered(dashboard: Dashboard) -> str:
    """Return the text of the dashboard's file."""
    return json.dumps(as_json(dashboard), indent=1) + "\n"


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in dashboard.rows:
        title = {"type": "row", "title": row.title, "collapsed": False, "panels": []}
        panels.append(_place(title, len(panels), 0, top, _WIDTH, 1))
        top += 1
        height = 4 if row.panels[0].kind == "stat" else 8
        for line in range(0, len(row.panels), row.per_line):
            here = row.panels[line : line + row.per_line]
            edges = [_WIDTH * column // len(here) for column in range(len(here) + 1)]
            for column, panel in enumerate(here):
                width = edges[column + 1] - edges[column]
                panels.append(_place(_panel(panel), len(panels), edges[column], top, width, height))
            top += height
    link = {"type": "dashboards", "title": "KMIP gateway", "tags": [_TAG], "includeVars": True, "keepTime": False}
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": "Made by python -m grafana.build. Each panel says which values are bad and what to do.",
        "tags": [_TAG],
        "timezone": "browser",
        "schemaVersion": 39,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": dashboard.since, "to": "now"},
        "links": [link],
        "templating": {"list": _variables()},
        "annotations": {"list": _annotations()},
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                **({"instant": True, "range": False, "format": "table"} if panel.kind == "table" else {}),
                **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel.steps)}
    if panel.unit == "percentunit" and panel.kind in {"timeseries", "bargauge"}:
        defaults |= {"min": 0, "max": 1} if panel.kind == "bargauge" else {"min": 0}
    if panel.names:
        named = {str(value): {"text": text, "color": color} for value, text, color in panel.names}
        defaults["mappings"] = [{"type": "value", "options": named}]
    if panel.kind in {"stat", "bargauge", "table"}:
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind == "table":
        defaults["custom"] = {"cellOptions": {"type": "color-text"}}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
            "showPoints": "never",
        }
    return defaults


def _thresholds(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def _options(panel: Panel) -> dict[str, Any]:
    reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    options: dict[str, dict[str, Any]] = {
        "stat": {**reduced, "colorMode": "value", "graphMode": "area", "textMode": "auto"},
        "bargauge": {**reduced, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
        "timeseries": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "state-timeline": {"legend": legend, "mergeValues": True, "showValue": "auto", "rowHeight": 0.9},
        "heatmap": {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}},
        "table": {"showHeader": True, "footer": {"show": False}},
    }
    return options[panel.kind]


def _place(panel: dict[str, Any], index: int, left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return panel | {"id": index + 1, "gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    return [source] + [
        {
            "name": name,
            "type": "query",
            "query": query,
            "datasource": _SOURCE,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
        }
        for name, query in VARIABLES.items()
    ]


def _annotations() -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "datasource": _SOURCE,
            "enable": True,
            "iconColor": each.color,
            "expr": each.expression,
            "titleFormat": each.text,
            "step": "15s",
            **({"useValueForTime": "on"} if each.is_time else {}),
        }
        for each in ANNOTATIONS
    ]
