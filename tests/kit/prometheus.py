"""Prometheus for tests: a real one, which scrapes a gateway every half second and evaluates a file of rules."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.kit.processes import Gateway, ended, free_port, is_listening, wait_until

PROMETHEUS: Final = shutil.which("prometheus")
CONFIG: Final = """
global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}
rule_files: ["rules.yml"]
scrape_configs:
  - job_name: kmip-gateway
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


@dataclass
class Prometheus:
    """A running Prometheus."""

    port: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query: each with ``metric``, its labels, and ``value``."""
        data = urllib.parse.urlencode({"query": expression}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query", data, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def has_scraped(self) -> bool:
        """Return True if the gateway was scraped; False also while Prometheus is not ready."""
        with suppress(OSError):
            return bool(self.query("up == 1"))
        return False

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """Return the labels of the alerts that fire, by their names."""
        found: dict[str, list[dict[str, str]]] = {}
        for series in self.query('ALERTS{alertstate="firing"}'):
            found.setdefault(series["metric"]["alertname"], []).append(series["metric"])
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Return the active alerts with their annotations."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/alerts", timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["alerts"]
        return found


@contextmanager
def running_prometheus(directory: Path, gateway: Gateway, rules: str) -> Iterator[Prometheus]:
    """Run Prometheus until the block ends; its first scrape has succeeded."""
    assert PROMETHEUS is not None
    port = free_port()
    (directory / "prometheus.yml").write_text(CONFIG.format(port=gateway.admin_port))
    (directory / "rules.yml").write_text(rules)
    command = [PROMETHEUS, f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    prometheus = Prometheus(port)
    with ended(process):
        wait_until(lambda: process.poll() is not None or is_listening(port), "Prometheus' start")
        assert process.poll() is None, log.read_text()
        wait_until(prometheus.has_scraped, "Prometheus' first scrape")
        yield prometheus
