"""One client, run in a thread of the test."""

from dataclasses import replace
from multiprocessing import get_context

from kmip_lab.speed.client_process import ClientPlan, _Client

from lab.tests.kit.speed_server import Serve


def test_a_client_stops_after_ten_failures_in_a_row(serve: Serve) -> None:
    progress = [0]
    with serve({"fault": "standby", "operations": ["Get"]}) as server:
        target = replace(server.target, discover=False)
        client = _Client(ClientPlan(target, "get", 12, "kept"), 0)
        tally = client.run(get_context("spawn").Barrier(1), progress)
    assert (tally.left_out, tally.errors.total(), progress) == (2, 10, [10])
    assert tally.full_handshakes == 1  # a refusal leaves the session usable
