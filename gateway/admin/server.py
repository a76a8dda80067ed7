"""The admin listener: GET /metrics, /livez and /readyz, for Prometheus and for whoever starts and stops the gateway.

Plain HTTP and without secrets; the default address is the machine's own. /livez says that the process answers, /readyz
that clients should be sent here: it does not drain, and at least one key manager can be reached.
"""

import logging
import socket
from collections.abc import Callable
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import Framework
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_EXPOSITION_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


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
    """Serve the routes on a listening socket until the event."""
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.errorlog = logging.getLogger("hypercorn")
    config.graceful_timeout = 0.5
    await serve(cast("Framework", app), config, shutdown_trigger=until.wait, mode="asgi")
    listening.detach()  # hypercorn has closed it
