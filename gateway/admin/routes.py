"""The answers of the admin port to GET /metrics, /livez, /readyz, / and /events; every other path is refused.

Plain functions over a method, a target and a Host header; the connections are in ``server``.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Final

import trio

from gateway import log
from gateway.admin.access import Access
from gateway.admin.answer import HttpAnswer
from gateway.admin.page import Snapshot, StatusPage, no_state
from gateway.steps import Steps

_EXPOSITION_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
RENDERING_INTERVAL: Final = 1.0  # s between two renderings of /metrics
#: RFC 9110 section 7.2: a host, in brackets if it is an IPv6 address, and perhaps a port.
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


class Rendering:
    """The exposition of /metrics, rendered at most once in RENDERING_INTERVAL seconds.

    An earlier request waits for the next rendering, which serves all waiting requests. So an answer is never older than
    its request. The exposition comes in parts, between which other tasks run.
    """

    def __init__(self, exposition: Callable[[], Iterable[bytes]]) -> None:
        self._exposition = exposition
        self._lock = trio.Lock()
        self._began_at = float("-inf")  # of the last rendering
        self._bytes = b""

    async def current(self) -> bytes:
        """Return an exposition that is no older than this call."""
        asked_at = trio.current_time()
        async with self._lock:
            if self._began_at < asked_at:
                await trio.sleep_until(self._began_at + RENDERING_INTERVAL)
                began_at = trio.current_time()
                self._bytes = await self._render()
                self._began_at = began_at
        return self._bytes

    async def _render(self) -> bytes:
        parts: list[bytes] = []
        steps = Steps()
        for part in self._exposition():
            parts.append(part)
            await steps.turn()
        return b"".join(parts)


class Routes:
    """The paths and their answers.

    ``unreadiness`` returns the reason for which no client should be sent here, or None. ``names`` are the host names of
    the port, besides localhost. A Host header with any other name is refused: a web page could otherwise have its own
    name resolve to this machine, and read the answers (DNS rebinding). An IP address is always accepted: a page that a
    browser loaded from a name sends this name. ``access`` says who may read the metrics and the state of the gateway;
    None: everybody.
    """

    def __init__(
        self,
        exposition: Callable[[], Iterable[bytes]],
        unreadiness: Callable[[], str | None],
        names: Iterable[str] = (),
        access: Access | None = None,
        snapshot: Snapshot = no_state,
    ) -> None:
        page = StatusPage(snapshot)
        self._rendering = Rendering(exposition)
        self._unreadiness = unreadiness
        self._access = access or Access()
        self._names = {_plain(name) for name in ("localhost", *names)}
        self._routes: dict[str, Callable[[], Awaitable[HttpAnswer]]] = {
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/": page.page,
            "/events": page.events,
        }
        self._restricted = {"/metrics", "/events"}
        self._log = log.get("admin")
        self._throttle = log.Throttle(interval=60.0)

    def settings_changed(self, names: Iterable[str], access: Access) -> None:
        """Use these host names and this access from now on."""
        self._names = {_plain(name) for name in ("localhost", *names)}
        self._access = access

    async def answer(
        self,
        method: str,
        target: str,
        host: str | None,
        authorization: str | None = None,
        *,
        has_certificate: bool = False,
    ) -> HttpAnswer:
        """Return the answer to a request. ``host`` is the Host header, which HTTP/1.0 may omit.

        For ``authorization`` and ``has_certificate`` see ``Access.refuse``.
        """
        if (refusal := self._refuse_host(host)) is not None:
            return refusal
        path = target.partition("?")[0]
        route = self._routes.get(path)
        if route is None:
            return HttpAnswer.of(HTTPStatus.NOT_FOUND)
        if method not in {"GET", "HEAD"}:
            return HttpAnswer.of(HTTPStatus.METHOD_NOT_ALLOWED)._replace(headers=(("Allow", "GET, HEAD"),))
        if (
            path in self._restricted
            and (refused := self._access.refuse(authorization, has_certificate=has_certificate)) is not None
        ):
            self._throttle.warn(
                self._log,
                "access",
                "request to the admin port refused: it has no valid token or certificate",
                reason=refused.body.decode().strip(),
            )
            return refused
        return await route()

    def _refuse_host(self, host: str | None) -> HttpAnswer | None:
        if host is None:
            return None
        match = _HOST.fullmatch(host)
        if match is None:
            return HttpAnswer.of(HTTPStatus.BAD_REQUEST, "the Host header is not host:port")
        name = match["name"]
        if _plain(name) in self._names or _is_address(name.strip("[]")):
            return None
        self._throttle.warn(
            self._log,
            "host",
            "request to the admin port refused: its Host header has an unknown name; if the name is this gateway's, add"
            " it to admin.hosts",
            host=log.quoted(name),
        )
        return HttpAnswer.of(
            HTTPStatus.MISDIRECTED_REQUEST, "unknown host name; if it is this gateway's, add it to admin.hosts"
        )

    async def _metrics(self) -> HttpAnswer:
        return HttpAnswer(HTTPStatus.OK, await self._rendering.current(), _EXPOSITION_FORMAT)

    async def _livez(self) -> HttpAnswer:
        return HttpAnswer.of(HTTPStatus.OK, "ok")

    async def _readyz(self) -> HttpAnswer:
        reason = self._unreadiness()
        return (
            HttpAnswer.of(HTTPStatus.OK, "ok")
            if reason is None
            else HttpAnswer.of(HTTPStatus.SERVICE_UNAVAILABLE, reason)
        )


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
