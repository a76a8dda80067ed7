"""Refused connections in the audit trail: a flood of them is a few lines with a sum."""

from collections.abc import Mapping
from typing import Any

from gateway.audit.refused import RefusedConnections


def test_few_connections_have_a_line_each() -> None:
    found: list[tuple[str, Mapping[str, Any]]] = []
    refused = RefusedConnections(lambda event, facts: found.append((event, facts)))

    refused.add("kmip", "not_tls", "192.0.2.1:5000")
    refused.add("kmip", "limit", "192.0.2.2:5000", "max_clients")
    refused.add("kmip", "not_authenticated", "192.0.2.3:5000", certificate="c0ffee")
    refused.flush()

    assert found == [
        ("connection", {"listener": "kmip", "reason": "not_tls", "client": "192.0.2.1:5000"}),
        ("connection", {"listener": "kmip", "reason": "limit", "detail": "max_clients", "client": "192.0.2.2:5000"}),
        (
            "connection",
            {"listener": "kmip", "reason": "not_authenticated", "client": "192.0.2.3:5000", "certificate": "c0ffee"},
        ),
    ]


def test_a_flood_is_ten_lines_and_a_sum_each_second() -> None:
    found: list[tuple[str, Mapping[str, Any]]] = []
    refused = RefusedConnections(lambda event, facts: found.append((event, facts)))

    for _second in range(2):
        for number in range(10_000):
            refused.add("kmip", "not_tls", f"192.0.2.{number % 200}:5000")
        refused.flush()

    assert [event for event, _facts in found] == (["connection"] * 10 + ["connections"]) * 2
    assert found[-1][1]["count"] == 9990
    assert len(found[-1][1]["clients"]) == 20
