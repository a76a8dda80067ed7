"""The state that the status page shows, from a gateway with key managers, over its admin port."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kmip.core import enums

from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)

TOKEN = "t" * 40


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("status"))


@pytest.fixture(scope="module")
def gateway(certificates: Certificates) -> Iterator[Gateway]:
    identities = [
        Identity("backup", '{ subject_cn = "backup" }', shared=False, credential="backup"),
        Identity("everyone"),
    ]
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, identities=identities)) as running,
    ):
        yield running


def snapshot(port: int, token: str | None = None) -> dict[str, Any]:
    """Return the first event of a gateway's stream."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/events")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
        assert answer.headers["Content-Type"] == "text/event-stream"
        found: dict[str, Any] = json.loads(answer.readline().removeprefix(b"data: "))
    return found


def test_a_snapshot_has_key_managers_traffic_and_events(gateway: Gateway) -> None:
    with gateway.client() as client:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256)
        for _ in range(5):
            client.get(uid)
        state = snapshot(gateway.admin_port)
    assert [(each["name"], each["state"]) for each in state["backends"]] == [("kms-1", "up"), ("kms-2", "up")]
    assert state["requests"]["success"] >= 6
    traffic = state["traffic"]["backends"]
    assert sum(each["results"].get("answered", 0) for each in traffic.values()) >= 6
    for each in traffic.values():
        counts = [count for _bound, count in each["buckets"]]
        assert counts == sorted(counts)
        assert each["buckets"][-1][0] == "+Inf"
    assert state["traffic"]["identities"]["everyone"]["success"] >= 6
    assert state["clients"]["connections"] == 1
    assert set(state["pools"]) == {"backup", "everyone"}
    assert {"listening", "starting"} <= {event["event"] for event in state["events"]}
    assert state["unready"] is None


def test_a_snapshot_has_no_value_of_a_message(gateway: Gateway) -> None:
    with gateway.client() as client:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256)
        key = client.get(uid).value
    text = json.dumps(snapshot(gateway.admin_port))
    assert uid not in text
    assert key.hex() not in text


def test_only_a_token_shows_the_state_if_there_are_tokens(certificates: Certificates, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    with (
        running_key_managers(certificates, ("kms-1",)) as ports,
        running_gateway(certificates, GatewaySettings(ports, extra=f'token_file = "{path}"\n')) as running,
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            snapshot(running.admin_port)
        assert refused.value.code == 401
        refused.value.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{running.admin_port}/", timeout=10) as answer:
            assert b"A token is needed" in answer.read()  # the page itself has no state
        assert snapshot(running.admin_port, TOKEN)["backends"][0]["name"] == "kms-1"
