"""Client processes, started together and gathered."""

from dataclasses import replace

import pytest
from kmip_lab.speed.client_process import ClientPlan
from kmip_lab.speed.processes import ClientDiedError, measure

from lab.tests.kit.speed_server import Serve


def test_clients_are_measured_together(serve: Serve) -> None:
    seen: list[int] = []
    with serve() as server:
        measured, made = measure(ClientPlan(server.target, "create", 3, "kept"), 2, seen.append)
    assert (len(measured.durations), len(made), measured.errors) == (6, 6, {})
    assert seen[-1] == 6


def test_a_client_that_can_not_begin_is_an_error(serve: Serve) -> None:
    with serve() as server:
        plan = ClientPlan(replace(server.target, ca=server.certificates / "missing.pem"), "get", 1, "kept")
        with pytest.raises(ClientDiedError, match="ended with exit status 1"):
            measure(plan, 2)
