"""The admin listener: GET /metrics, /livez and /readyz, for Prometheus and for whoever starts and stops the gateway.

Plain HTTP and without secrets; the default address is the machine's own. /livez says that the process answers, /readyz
that clients should be sent here: it does not drain, and at least one key manager can be reached.
"""

import logging
import socket
from collections.abc import Callable
from typing import Final, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from hypercorn.typing import Framework
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway import log

_EXPOSITION_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
_BREATH: Final = 0.1  # s before a server that failed is begun anew


def application(exposition: Callable[[], bytes], unreadiness: Callable[[], str | None]) -> Starlette:
    """The routes. ``unreadiness`` returns why no client should be sent here, or None."""

    async def metrics(_request: Request) -> Response:
        return Response(exposition(), media_type=_EXPOSITION_FORMAT)

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        reason = unreadiness()
        return PlainTextResponse("ok\n" if reason is None else f"{reason}\n", 200 if reason is None else 503)

    routes = {"/metrics": metrics, "/livez": livez, "/readyz": readyz}
    return Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()])


async def serve_admin(listening: socket.socket, app: Starlette, until: trio.Event) -> None:
    """Serve the routes on a listening socket until the event.

    Hypercorn lets what it can't stand in one request (an upgrade to HTTP/2 with bad settings, for one) end the whole
    server. Then it is begun anew: whoever can reach this port must not be able to end the gateway.
    """
    framework = cast("Framework", app)
    while not until.is_set():
        try:
            with listening.dup() as sock:
                await serve(framework, _Listening(sock), shutdown_trigger=until.wait, mode="asgi")
        except Exception as error:  # noqa: BLE001 - see above
            log.get("admin").warning("admin server failed, and is begun anew", reason=repr(error))
            await trio.sleep(_BREATH)


class _Listening(Config):
    """Hypercorn's configuration, for a socket that listens already; hypercorn closes it."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__()
        self.errorlog = logging.getLogger("hypercorn")
        self.graceful_timeout = 0.5
        self._sockets = Sockets([], [listening], [])

    def create_sockets(self) -> Sockets:
        return self._sockets
