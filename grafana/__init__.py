"""Dashboards and alerts, made by ``python -m grafana.build``."""
