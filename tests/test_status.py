"""The state that the status page shows, from a gateway with key managers, over its admin port; and its making."""

import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from kmip.core import enums
from OpenSSL import SSL

from gateway import steps, tls, wiring
from gateway.admin.page import StatusPage
from gateway.config import load
from gateway.metrics import Metrics
from gateway.status import Status
from tests.kit.config_files import SMALL, put_certificates, write
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


IDENTITIES = 200
BACKENDS = 12


def large() -> str:
    """Return a configuration with many identities and key managers."""
    before, _, rest = SMALL.partition("[[backends]]")
    parts = [before, rest[rest.index("[admin]") :]]
    for number in range(BACKENDS):
        address = f'address = "127.0.0.1:{15000 + number}"'
        parts.append(f'[[backends]]\nname = "kms-{number}"\n{address}\nca = "kms-ca.pem"\n')
    for number in range(IDENTITIES):
        name = f"tenant-{number}"
        files = f'certificate = "{name}.pem"\nprivate_key = "{name}.key"'
        parts.append(f'[[identities]]\nname = "{name}"\nmatch = {{ subject_cn = "{name}" }}\n{files}\n')
    return "\n".join(parts)


class Large(NamedTuple):
    status: Status
    upstream: wiring.Upstream


@pytest.fixture
async def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Large]:
    """The status of a gateway with many pools. Every step ends with a turn of the other tasks, however short it is."""
    monkeypatch.setattr(steps, "STEP", 0.0)
    for name in ("server_context", "client_context"):
        monkeypatch.setattr(tls, name, lambda *_arguments, **_by_name: SSL.Context(SSL.TLS_METHOD))
    text = large()
    put_certificates(tmp_path, text)
    config = load(write(tmp_path, text))
    metrics = Metrics("test")
    async with trio.open_nursery() as background:
        upstream = wiring.Upstream(config, background, metrics)
        front = wiring.Front(config, wiring.build_dispatcher(config, upstream, metrics), metrics)
        yield Large(Status(upstream, front, metrics), upstream)
        background.cancel_scope.cancel()


async def count_turns(turns: list[int]) -> None:
    while True:
        turns[0] += 1
        await trio.lowlevel.checkpoint()


async def test_other_tasks_run_while_a_snapshot_is_made_and_encoded(many: Large) -> None:
    turns = [0]
    page = StatusPage(many.status.snapshot)
    answer = await page.events()
    assert answer.stream is not None
    events = answer.stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns, turns)
        event = await anext(events)
        nursery.cancel_scope.cancel()
    await events.aclose()
    state = json.loads(event.removeprefix(b"data: "))
    assert [len(each["pools"]) for each in state["backends"]] == [IDENTITIES] * BACKENDS
    assert len(state["pools"]) == IDENTITIES
    assert turns[0] > IDENTITIES * BACKENDS


async def test_two_states_are_never_made_at_once(many: Large) -> None:
    """Else twice the work would be done between two turns of a client's request."""
    turns = [0]

    async def show() -> None:
        await many.status.current()
        turns.append(turns[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns, turns)
        async with trio.open_nursery() as both:
            both.start_soon(show)
            both.start_soon(show)
        nursery.cancel_scope.cancel()
    assert turns[2] - turns[1] > IDENTITIES * BACKENDS  # the second has begun after the first


async def test_a_pool_and_a_key_manager_may_vanish_while_a_snapshot_is_made(many: Large) -> None:
    async def remove() -> None:
        configured = many.upstream.fleet._configured[-1]
        for number in range(IDENTITIES):
            for backend in many.upstream.fleet.backends:
                backend.remove_pool(f"tenant-{number}")
            await trio.lowlevel.checkpoint()
        configured.backends.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove)
        for _ in range(3):
            state = await many.status.snapshot()
    assert len(state["backends"]) == BACKENDS - 1
    assert state["pools"] == {}
