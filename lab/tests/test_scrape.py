"""What a gateway says of itself, read from something that says the same."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from kmip_lab.scrape import SESSIONS_OPENED, scrape

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
