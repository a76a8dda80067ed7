"""The control socket: runtime control over a Unix socket, for ``kmip-gateway status``, ``drain``, ``reload`` and so on.

One request and one answer on each connection, each one line of JSON:

    {"command": "drain", "arguments": {"backend": "atlanta-001"}}
    {"result": {...}}   or   {"error": "no backend is named atlanta-009; there are atlanta-001, atlanta-002"}

The answer to ``tap`` is ``{"result": "lines follow"}``; then comes a line of JSON for each request of a client, until
one side closes.

The socket's mode is 0600, and the kernel tells the peer's user: root and the gateway's own user are served. So the
socket may operate the gateway; the TCP admin port only reads.
"""

import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import trio

from gateway import log
from gateway.errors import ConfigError, ControlError
from gateway.log import quoted
from gateway.steps import encoded

_MAX_REQUEST: Final = 64 * 1024  # bytes
_MAX_CONNECTIONS: Final = 8
_READ_DEADLINE: Final = 5.0  # s
_SEND_DEADLINE: Final = 10.0  # s
_CONNECT_DEADLINE: Final = 5.0  # s
_BACKLOG: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group


@runtime_checkable
class Subscription(Protocol):
    """Lines that arrive as long as the client stays."""

    async def receive(self) -> bytes:
        """Wait for lines, and return them."""

    def close(self) -> None:
        """End the subscription."""


#: Takes the arguments of a request; returns what JSON can hold, or a Subscription. Raises ControlError for a request
#: that can't be done.
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]


@contextmanager
def control_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket for a block, with mode 0600; remove its file at the end.

    A file that a gateway left when it was killed is replaced; that of a gateway that runs is a mistake. Raises
    ConfigError.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        remedy = "choose a path in a directory that can be written"
        reason = error.strerror or str(error)
        raise ConfigError([f"admin.socket: can't listen on {path}: {reason}; {remedy}"]) from None
    try:
        yield sock
    finally:
        with suppress(OSError):
            path.unlink()  # first: once the socket has closed, the file may be that of the next gateway
        sock.close()


def _remove_stale(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return
    if not is_socket:
        raise ConfigError([f"admin.socket: {path} exists and is not a socket; choose another path"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(1.0)
        try:
            other.connect(str(path))
        except OSError:
            with suppress(OSError):
                path.unlink()
            return
    raise ConfigError([f"admin.socket: another process listens on {path}; stop it, or choose another path"])


class ControlServer:
    """Serves ``commands``, by name, to root and to the user of this process.

    The commands in ``changing`` are logged with the number of the user who gave them. They, and refused users, get a
    line in the audit trail: ``audit`` takes the name of the event and its members.
    """

    def __init__(
        self,
        commands: Mapping[str, Command],
        *,
        changing: Collection[str] = (),
        users: frozenset[int] | None = None,
        audit: Callable[[str, Mapping[str, Any]], None] = lambda _event, _facts: None,
    ) -> None:
        self._commands = commands
        self._changing = changing
        self._audit = audit
        self._users = frozenset({0, os.geteuid()}) if users is None else users
        self._log = log.get("control")
        self._open = 0

    async def run(self, listening: socket.socket) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listening)
                try:
                    sock, _address = listening.accept()
                except OSError:
                    await trio.sleep(0.05)
                    continue
                if self._open >= _MAX_CONNECTIONS:
                    sock.close()
                    continue
                self._open += 1
                nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    answer = await self._answer(stream, _user_of(sock))
                    if isinstance(answer, Subscription):
                        await _pass_on(answer, stream)
                        return
                    line = await encoded(answer) + b"\n"
                    with trio.move_on_after(_SEND_DEADLINE):
                        await stream.send_all(line)
        except Exception as error:  # noqa: BLE001 - a connection to the socket must not end the gateway
            self._log.error("internal error: control connection failed; report this bug", exc_info=error)
        finally:
            self._open -= 1

    async def _answer(self, stream: trio.SocketStream, user: int) -> dict[str, Any] | Subscription:
        if user not in self._users:
            self._log.warning("control request refused: its user is neither root nor the gateway's own", user=user)
            self._audit("command", {"user": user, "result": "refused"})
            return {"error": f"user {user} may not control this gateway: become root, or the gateway's own user"}
        try:
            name, arguments = await _read_request(stream)
            command = self._command(name)
            if name in self._changing:
                self._log.info("control command", command=name, **_given(arguments), user=user)
                return {"result": await self._change(name, command, arguments, user)}
            result = await command(arguments)
            if isinstance(result, Subscription):
                self._log.info("control command", command=name, **_given(arguments), user=user)
                return result
        except ControlError as error:
            reason = quoted(str(error).partition("\n")[0])  # of several mistakes, a reload logs each itself
            self._log.info("control command refused", reason=reason, user=user)
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the gateway
            self._log.error("internal error: control command failed; report this bug", exc_info=error)
            return {"error": "the gateway failed to do this; its log says why"}
        return {"result": result}

    async def _change(self, name: str, command: Command, arguments: Mapping[str, Any], user: int) -> Any:
        """Carry out a command, and write its line in the audit trail."""
        result = "failed"
        try:
            found = await command(arguments)
            result = "done"
        except ControlError:
            result = "refused"
            raise
        finally:
            facts = {"command": name, "arguments": dict(arguments), "user": user, "result": result}
            self._audit("command", facts)
        return found

    def _command(self, name: str) -> Command:
        if name not in self._commands:
            raise ControlError(f"no command is named {name!r}; there are {', '.join(sorted(self._commands))}")
        return self._commands[name]


def _given(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the field ``arguments`` of a log line, if any were given: the others are empty, false or zero."""
    given = quoted(" ".join(f"{key}={value}" for key, value in arguments.items() if value))
    return {"arguments": given} if given else {}


async def _pass_on(subscription: Subscription, stream: trio.SocketStream) -> None:
    """Send the lines of a subscription until the client closes."""

    async def wait_for_end(scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(_MAX_REQUEST):
                pass  # a client has nothing more to say
        scope.cancel()

    try:
        await stream.send_all(b'{"result": "lines follow"}\n')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_end, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):  # here: a nursery would raise it in a group
                while True:
                    await stream.send_all(await subscription.receive())
            nursery.cancel_scope.cancel()
    finally:
        subscription.close()


def _user_of(sock: socket.socket) -> int:
    """Return the user of the process at the other end, as the kernel noted it when it connected (SO_PEERCRED)."""
    _process, user, _group = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(user)


async def _read_request(stream: trio.SocketStream) -> tuple[str, Mapping[str, Any]]:
    line = b""
    with trio.move_on_after(_READ_DEADLINE) as deadline:
        line = await _read_line(stream, _MAX_REQUEST)
    if deadline.cancelled_caught:
        raise ControlError("the request did not come in time")
    try:
        request = json.loads(line)
        name, arguments = request["command"], request.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ControlError('a request is one line of JSON: {"command": NAME, "arguments": {...}}') from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ControlError("command is a string, and arguments is an object")
    return name, arguments


async def _read_line(stream: trio.SocketStream, most: int | None = None) -> bytes:
    """Return what comes before the first line feed, or before the end. Raises ControlError beyond ``most`` bytes."""
    received = bytearray()
    while chunk := await stream.receive_some(65536):
        received += chunk
        if b"\n" in chunk:
            break
        if most is not None and len(received) > most:
            raise ControlError(f"a request has at most {most} bytes")
    return bytes(received).partition(b"\n")[0]


async def request(path: Path, command: str, arguments: Mapping[str, Any] | None = None, deadline: float = 60.0) -> Any:
    """Send a command to the gateway that listens on a control socket, and return its result.

    ``deadline`` is in seconds. Raises ControlError, with the gateway's own words if it refuses.
    """
    async with await _connect(path) as stream:
        return await _ask(path, stream, command, arguments or {}, deadline)


async def subscribe(
    path: Path, command: str, arguments: Mapping[str, Any], take: Callable[[dict[str, Any]], bool]
) -> None:
    """Send a command whose answer is lines, and ``take`` each line, until ``take`` returns False.

    Raises ControlError if the gateway refuses, or closes the connection.
    """
    async with await _connect(path) as stream:
        lines = _Lines(stream)
        await _ask(path, stream, command, arguments, 60.0, lines)
        while line := await lines.next():
            if not take(json.loads(line)):
                return
    raise ControlError(f"the gateway on {path} closed the connection: it ends")


class _Lines:
    """Reads lines of any length from a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def next(self) -> bytes:
        """Return the next line; empty at the end."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            try:
                chunk = await self._stream.receive_some(65536)
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                return b""
            self._received += chunk
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line


async def _connect(path: Path) -> trio.SocketStream:
    try:
        with trio.fail_after(_CONNECT_DEADLINE):
            return await trio.open_unix_socket(str(path))
    except trio.TooSlowError:
        raise ControlError(f"no gateway answers on {path}") from None
    except PermissionError:
        raise ControlError(f"this user may not use {path}: become root, or the gateway's own user") from None
    except OSError as error:
        raise ControlError(f"no gateway can be reached on {path}: {error.strerror or error}") from None


async def _ask(
    path: Path,
    stream: trio.SocketStream,
    command: str,
    arguments: Mapping[str, Any],
    deadline: float,
    lines: _Lines | None = None,
) -> Any:
    """Send a command, and return the result in the first line of the answer."""
    line = b""
    try:
        with trio.fail_after(deadline):
            with suppress(trio.BrokenResourceError):  # a user who is refused gets an answer before the request is read
                await stream.send_all(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            line = await (_read_line(stream) if lines is None else lines.next())
    except trio.TooSlowError:
        raise ControlError(f"the gateway on {path} did not answer within {deadline:g} s") from None
    except trio.BrokenResourceError:
        raise ControlError(f"the gateway on {path} closed the connection") from None
    if not line:
        raise ControlError(
            f"the gateway on {path} closed the connection without an answer: it has too many, or it ends"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer["result"]
