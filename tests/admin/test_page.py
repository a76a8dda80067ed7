"""The status page and its stream: nothing from elsewhere, snapshots shared by all watchers, and none without one."""

import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import pytest
import trio

from gateway.admin.answer import HttpAnswer
from gateway.admin.page import LEAST_WATCH, MAX_WATCHERS, SNAPSHOT_INTERVAL, StatusPage, no_state
from tests.kit.fake_backends import in_virtual_time


class Source:
    """A state that counts how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def snapshot(self) -> dict[str, Any]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        return {"number": self.asked}


def stream(answer: HttpAnswer) -> AsyncGenerator[bytes]:
    assert answer.stream is not None
    return answer.stream()


def number(event: bytes) -> int:
    data = event.decode().removeprefix("data: ")
    assert data.endswith("\n\n")
    return int(json.loads(data)["number"])


async def test_the_page_names_the_hashes_of_its_own_script_and_style() -> None:
    answer = await StatusPage(no_state).page()
    policy = dict(answer.headers)["Content-Security-Policy"]
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_the_page_loads_nothing_from_elsewhere() -> None:
    text = (await StatusPage(no_state).page()).body.decode()
    addresses = set(re.findall(r"https?://[^\s'\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format, in the icon
    assert "innerHTML" not in text


@in_virtual_time
async def test_watchers_share_a_snapshot_in_each_interval() -> None:
    source = Source()
    page = StatusPage(source.snapshot)
    seen: list[int] = []

    async def watch() -> None:
        async with aclosing(stream(await page.events())) as events:
            seen.extend([number(await anext(events)) for _ in range(3)])

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(watch)
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]
    assert trio.current_time() - began == 2 * SNAPSHOT_INTERVAL


@in_virtual_time
async def test_no_snapshot_is_made_without_a_watcher() -> None:
    source = Source()
    page = StatusPage(source.snapshot)
    async with aclosing(stream(await page.events())) as events:
        await anext(events)
    await trio.sleep(10 * SNAPSHOT_INTERVAL)
    assert source.asked == 1


@in_virtual_time
async def test_a_new_watcher_takes_the_place_of_the_oldest() -> None:
    page = StatusPage(no_state)
    streams = [stream(await page.events()) for _ in range(MAX_WATCHERS)]
    for each in streams:
        await anext(each)
    await trio.sleep(LEAST_WATCH - 0.1)
    assert (await page.events()).status == HTTPStatus.SERVICE_UNAVAILABLE
    await trio.sleep(0.2)

    async with aclosing(stream(await page.events())) as latest:
        await anext(latest)
        assert repr(page) == f"<StatusPage {MAX_WATCHERS} watchers>"
        with pytest.raises(StopAsyncIteration):
            await anext(streams[0])
        await anext(streams[1])
    for each in streams:
        await each.aclose()
    assert repr(page) == "<StatusPage 0 watchers>"


@in_virtual_time
async def test_a_stream_that_never_starts_ends_no_watcher() -> None:
    """HEAD /events has the answer without its stream."""
    page = StatusPage(no_state)
    streams = [stream(await page.events()) for _ in range(MAX_WATCHERS)]
    for each in streams:
        await anext(each)
    await trio.sleep(LEAST_WATCH)

    assert (await page.events()).status == HTTPStatus.OK

    for each in streams:
        await anext(each)
        await each.aclose()


async def test_watchers_are_bounded_and_leave_room_when_they_go() -> None:
    page = StatusPage(no_state)
    streams = [stream(await page.events()) for _ in range(MAX_WATCHERS)]
    for each in streams:
        await anext(each)
    refused = await page.events()
    assert (refused.status, refused.stream) == (HTTPStatus.SERVICE_UNAVAILABLE, None)
    assert repr(page) == f"<StatusPage {MAX_WATCHERS} watchers>"
    for each in streams:
        await each.aclose()
    assert (await page.events()).status == HTTPStatus.OK
