"""Metrics, read from a server that answers as a gateway does."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from kmip_lab.tools import scrape as scraping
from kmip_lab.tools.scrape import SESSIONS_OPENED, measured_with_full_pools, scrape

from gateway.config import Address

_SAID = b"""# TYPE kmip_gateway_sessions_opened_total counter
kmip_gateway_sessions_opened_total{backend="atlanta-001"} 3.0
kmip_gateway_sessions_opened_total{backend="london-001"} 2.0
"""


class _Admin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(_SAID)

    def log_message(self, *_: object) -> None:
        pass


def test_samples_are_added_up_over_their_labels() -> None:
    with HTTPServer(("127.0.0.1", 0), _Admin) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        found = scrape(Address("127.0.0.1", server.server_port))
        thread.join()
    assert found[SESSIONS_OPENED] == 5
    assert found["never_heard_of"] == 0


async def test_a_measurement_is_repeated_until_no_session_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = iter([0.0, 3.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(scraping, "scrape", lambda _admin: {SESSIONS_OPENED: next(opened)})
    measured: list[int] = []

    async def measure() -> int:
        measured.append(len(measured))
        return measured[-1]

    assert await measured_with_full_pools(measure, Address("127.0.0.1", 1), 5) == (2, {SESSIONS_OPENED: 0.0})


async def test_the_last_of_too_many_measurements_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = iter([0.0, 3.0, 5.0])
    monkeypatch.setattr(scraping, "scrape", lambda _admin: {SESSIONS_OPENED: next(opened)})

    async def measure() -> str:
        return "measured"

    assert await measured_with_full_pools(measure, Address("127.0.0.1", 1), 2) == ("measured", {SESSIONS_OPENED: 2.0})
