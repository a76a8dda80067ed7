"""The status page: GET / is the page, GET /events a stream of snapshots (server-sent events), for whoever has /metrics.

The page is one file, without anything from elsewhere, so that it works offline; its script may run because the answer's
Content-Security-Policy names the script's hash. It only reads: for changes it shows the commands of the control socket.
"""

import base64
import hashlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import trio

from gateway.admin.answer import HttpAnswer
from gateway.steps import encoded

SNAPSHOT_INTERVAL: Final = 2.0  # s between two snapshots
MAX_WATCHERS: Final = 8  # streams at once
LEAST_WATCH: Final = 10.0  # s after which a stream makes room for a new one

_FILE: Final = Path(__file__).with_name("page.html")
_INLINE: Final = re.compile(r"<(?P<kind>script|style)>(?P<text>.*?)</(?P=kind)>", re.DOTALL)

#: Returns the state of the gateway as values of JSON.
Snapshot = Callable[[], Awaitable[Mapping[str, Any]]]


async def no_state() -> Mapping[str, Any]:
    """Return an empty snapshot."""
    return {}


class _Watcher:
    """A stream, and the time at which it began. ``replaced`` is set when it must end for a new one."""

    def __init__(self) -> None:
        self.since = trio.current_time()
        self.replaced = trio.Event()


class StatusPage:
    """The answers of the status page. All watchers get the same snapshots; without a watcher none is made.

    The kernel takes many snapshots for a watcher that does not read, so that such a watcher can't be known. Instead,
    if MAX_WATCHERS watch, a new stream ends the oldest one that is at least LEAST_WATCH seconds old. A page whose
    stream has ended opens another.
    """

    def __init__(self, snapshot: Snapshot, interval: float = SNAPSHOT_INTERVAL) -> None:
        self._snapshot = snapshot
        self._interval = interval
        self._watchers: list[_Watcher] = []  # the oldest first
        self._lock = trio.Lock()  # held while a snapshot is made
        self._made_at = float("-inf")
        self._event = b""
        text = _FILE.read_text(encoding="utf-8")
        self._page = HttpAnswer(
            HTTPStatus.OK,
            text.encode(),
            "text/html; charset=utf-8",
            (("Content-Security-Policy", _policy(text)), *_SAFE),
        )

    def __repr__(self) -> str:
        return f"<StatusPage {len(self._watchers)} watchers>"

    async def page(self) -> HttpAnswer:
        """Return the page itself, which has nothing of the state: its script asks for that."""
        return self._page

    async def events(self) -> HttpAnswer:
        """Return a stream of snapshots, or an error if MAX_WATCHERS have begun within LEAST_WATCH seconds."""
        if len(self._watchers) >= MAX_WATCHERS and trio.current_time() < self._watchers[0].since + LEAST_WATCH:
            text = f"{MAX_WATCHERS} pages watch already; close one, or try again in {LEAST_WATCH:g} s"
            return HttpAnswer.of(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return HttpAnswer(
            HTTPStatus.OK, b"", "text/event-stream", (("Cache-Control", "no-store"), *_SAFE), self._stream
        )

    async def _stream(self) -> AsyncGenerator[bytes]:
        if len(self._watchers) >= MAX_WATCHERS:  # not earlier: a HEAD request starts no stream
            self._watchers.pop(0).replaced.set()
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            while not watcher.replaced.is_set():
                yield await self._current()
                with trio.move_on_at(self._made_at + self._interval):
                    await watcher.replaced.wait()
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    async def _current(self) -> bytes:
        """Return the snapshot as an event; it is made anew if it is as old as the interval."""
        async with self._lock:
            now = trio.current_time()
            if now >= self._made_at + self._interval:
                self._event = b"data: " + await encoded(await self._snapshot()) + b"\n\n"
                self._made_at = now
            return self._event


_SAFE: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
)


def _policy(page: str) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, and connections to this port only."""
    hashes = {
        match["kind"]: base64.b64encode(hashlib.sha256(match["text"].encode()).digest()).decode()
        for match in _INLINE.finditer(page)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}';"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
