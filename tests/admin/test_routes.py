"""The answers of the admin port, the Hosts that get them, and how often /metrics is rendered."""

import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest
import trio

from gateway.admin.routes import Rendering, Routes
from tests.kit.fake_backends import in_virtual_time


def _routes(*names: str) -> Routes:
    return Routes(lambda: [b"answer 42\n"], lambda: None, names)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9696",
        "LOCALHOST.:9696",
        "127.0.0.1:9696",
        "192.0.2.7",
        "[::1]:9696",
        "[2001:db8::7]",
        "gw-1.example.com:9696",
        "Gateway",
        None,
    ],
)
async def test_a_known_name_or_an_address_is_served(host: str | None) -> None:
    routes = _routes("gw-1.example.com", "gateway")

    assert (await routes.answer("GET", "/livez", host)).status == HTTPStatus.OK


@pytest.mark.parametrize("target", ["/metrics", "/livez", "/readyz", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:9696", "localhost.evil.example", "gateway.example.com"])
async def test_an_unknown_name_is_misdirected_on_every_path(host: str, target: str) -> None:
    answer = await _routes("gateway").answer("GET", target, host)

    assert answer.status == HTTPStatus.MISDIRECTED_REQUEST
    assert b"admin.hosts" in answer.body


@pytest.mark.parametrize("host", ["", " ", "a b", "localhost:http", "::1", "[::1", "evil.example/@localhost", "\xff"])
async def test_a_malformed_host_is_a_bad_request(host: str) -> None:
    assert (await _routes().answer("GET", "/livez", host)).status == HTTPStatus.BAD_REQUEST


@in_virtual_time
async def test_metrics_are_rendered_at_most_once_a_second() -> None:
    rendered: list[float] = []

    def render() -> list[bytes]:
        rendered.append(trio.current_time())
        return [b"%d" % len(rendered)]

    rendering = Rendering(render)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for client in range(100):

            async def scrape(client: int = client) -> None:
                await trio.sleep(client * 0.03)
                await rendering.current()

            nursery.start_soon(scrape)

    assert [moment - began for moment in rendered] == pytest.approx([0, 1, 2, 3])


@in_virtual_time
async def test_an_exposition_is_never_older_than_its_request() -> None:
    values = [1]
    rendering = Rendering(lambda: [b"%d" % values[0]])

    assert await rendering.current() == b"1"
    await trio.sleep(0.2)
    values[0] = 2
    assert await rendering.current() == b"2"


@in_virtual_time
async def test_the_first_scrape_after_a_second_does_not_wait() -> None:
    rendering = Rendering(list)
    await rendering.current()
    await trio.sleep(1.5)
    began = trio.current_time()

    await rendering.current()

    assert trio.current_time() == began


async def test_other_tasks_run_during_a_long_rendering() -> None:
    turns = [0]

    def render() -> Iterator[bytes]:
        for number in range(5):
            until = time.perf_counter() + 0.002
            while time.perf_counter() < until:
                pass
            yield b"%d" % number

    async def other() -> None:
        while True:
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    rendering = Rendering(render)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await rendering.current() == b"01234"
        nursery.cancel_scope.cancel()
    assert turns[0] >= 5


@in_virtual_time
async def test_a_rendering_that_fails_does_not_spoil_the_next() -> None:
    parts: list[bytes] = []
    rendering = Rendering(lambda: iter(parts) if parts else 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        await rendering.current()
    parts.append(b"good")
    assert await rendering.current() == b"good"
