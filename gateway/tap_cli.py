"""``kmip-gateway tap``: live requests of a running gateway, over its control socket."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio

from gateway.admin.control import subscribe
from gateway.control_cli import REFUSED, socket_of
from gateway.errors import ControlError

_HEAD = "time         identity client operation object backend result: tries, queue + exchange = total"


@click.command()
@click.option("--identity", default="", help="Only requests of this identity.")
@click.option("--backend", default="", help="Only requests that went to this backend, or to one of this table.")
@click.option("--address", default="", help="Only requests of clients with this IP address, or in this network.")
@click.option("--operation", default="", help='Only requests with this operation, such as "Get" or "Create Key Pair".')
@click.option("--failed", is_flag=True, help="Only requests that failed.")
@click.option(
    "--slower-than",
    type=click.FloatRange(min=0.0),
    default=0.0,
    metavar="SECONDS",
    help="Only requests that took so long.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many requests.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each request.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="The gateway's configuration, whose admin.socket is used."
)
@click.option("--socket", type=click.Path(path_type=Path, readable=False), help="The control socket of the gateway.")
def tap(
    *,
    count: int | None,
    as_json: bool,
    config: Path | None,
    socket: Path | None,
    **wanted: Any,
) -> None:
    """Show the requests of a running gateway as they are answered, until Ctrl-C.

    Each line has the time, the identity, the client, the operation, its object, the backend, the result with the number
    of tries, and the time in the queue, at key managers, and in all. Payloads are never shown.
    """
    path = socket_of(socket, config)
    try:
        trio.run(subscribe, path, "tap", wanted, Printer(count, as_json=as_json).take)
    except ControlError as error:
        click.echo(json.dumps({"error": str(error)}) if as_json else str(error), err=not as_json)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        sys.exit(0)


class Printer:
    """Prints requests, and counts them. ``write`` is print, in a test another function."""

    def __init__(self, count: int | None, *, as_json: bool, write: Callable[..., None] = click.echo) -> None:
        self._left = count
        self._as_json = as_json
        self._write = write
        if not as_json:
            write(_HEAD)

    def take(self, found: dict[str, Any]) -> bool:
        """Print a line. Return False after the last one."""
        if self._as_json:
            self._write(json.dumps(found))
        elif (lost := found.get("lost")) is not None:
            self._write(f"{lost} requests were not shown: this command was not read fast enough")
        else:
            self._write(line(found))
        if self._left is not None and "lost" not in found:
            self._left -= 1
        return self._left is None or self._left > 0


def line(found: dict[str, Any]) -> str:
    """Return a request as a line for people."""
    items = found["items"]
    first = items[0] if items else {}
    more = f"+{len(items) - 1}" if len(items) > 1 else ""
    objects = first.get("ids") or first.get("answer_ids") or []
    named = objects[0] + (f"+{len(objects) - 1}" if len(objects) > 1 else "") if objects else "-"
    result = found["result"] if found["result"] != "operation_failed" else _first_reason(items)
    if refusal := found.get("refusal"):
        result = f"{found['result']} {refusal}"
    tries = f"{found['tries']} {'try' if found['tries'] == 1 else 'tries'}"
    queue, exchange, total = (found[key] * 1000 for key in ("queue", "exchange", "seconds"))
    operation = f"{first.get('operation', 'Invalid')}{more}"
    return (
        f"{found['time'][11:-1]} {found['identity']} {found['client']} {operation} {named}"
        f" {found['backend'] or '-'} {result}: {tries}, {queue:.1f} + {exchange:.1f} = {total:.1f} ms"
    )


def _first_reason(items: list[dict[str, Any]]) -> str:
    """Return the reason of the first operation that failed."""
    return next((f"failed {item['reason']}" for item in items if "reason" in item), "failed")
