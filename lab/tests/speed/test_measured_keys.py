"""Destroying the keys of a measurement."""

from dataclasses import replace

from kmip_lab.speed.measured_keys import MeasuredKeys

from lab.tests.kit.speed_server import Serve


def test_destroying_stops_after_three_requests_without_an_answer(serve: Serve) -> None:
    with serve({"fault": "deaf", "operations": ["Destroy"]}) as server:
        keys = MeasuredKeys(replace(server.target, timeout=0.1))
        keys.prepare(["get"])
        keys.made += ["never", "there", "at", "all"]
        keys.destroy()
    assert keys.failed == {"no answer in time": 3}
    assert len(keys.made) == 2


def test_destroying_goes_on_after_keys_that_the_server_does_not_have(serve: Serve) -> None:
    with serve() as server:
        keys = MeasuredKeys(server.target)
        keys.prepare(["get"])
        keys.made += ["never", "there", "at", "all"]
        keys.destroy()
    assert keys.failed == {"refused: ItemNotFound": 4}
    assert keys.made == []
