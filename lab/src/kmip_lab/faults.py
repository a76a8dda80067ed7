"""Faults: the ways in which a simulated key manager misbehaves, switched on and off while it runs.

Faults of requests act at the stage of a request that the table of actions gives: read, executed, about to be answered.
Faults of connections act in FaultyStream, and while the server accepts connections or waits for bytes.
"""

import math
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self

import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL, crypto
from pydantic import (
    BeforeValidator,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass

from gateway.errors import StreamClosedError
from gateway.kmip.messages import operation_name
from gateway.kmip.spec import Operation
from gateway.tls import TlsStream
from kmip_lab.certs import Authority, Credential, common_name

_LOOK: Final = 0.05  # s between two looks at a file of faults
_GARBAGE: Final = 64  # bytes, by default
_ELSEWHERE: Final = frozenset({"elsewhere.invalid"})  # names in a wrong certificate, by default
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing resets the connection


class Fault(Enum):
    """A way in which a simulated key manager misbehaves. NATURES describes each."""

    REFUSE = "refuse"
    DEAF = "deaf"
    FREEZE = "freeze"
    SLOW = "slow"
    RESET_BEFORE_READING = "reset_before_reading"
    RESET_AFTER_EXECUTING = "reset_after_executing"
    HANG_UP = "hang_up"
    CUT = "cut"
    GARBAGE = "garbage"
    EXTRA = "extra"
    IDLE_CLOSE = "idle_close"
    WRONG_CERTIFICATE = "wrong_certificate"
    REFUSE_CREDENTIAL = "refuse_credential"
    STANDBY = "standby"


class Nature(NamedTuple):
    """The description of a fault, and the parameters that it needs or may take."""

    does: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_SOME: Final = ("times", "operations", "unique_identifiers")  # limit the requests that a fault meets

NATURES: Final = {
    Fault.REFUSE: Nature("listens on no port; with reset, open sessions are reset, too", takes=("reset",)),
    Fault.DEAF: Nature(
        "completes handshakes, and never answers again on a session that has sent a request", takes=_SOME
    ),
    Fault.FREEZE: Nature("sends and reads nothing; once lifted, all sessions continue"),
    Fault.SLOW: Nature("executes, and answers after so many seconds", ("seconds",), _SOME),
    Fault.RESET_BEFORE_READING: Nature("resets the connection instead of executing", takes=_SOME),
    Fault.RESET_AFTER_EXECUTING: Nature("executes, and resets the connection instead of answering", takes=_SOME),
    Fault.HANG_UP: Nature("closes the session with close_notify instead of executing", takes=_SOME),
    Fault.CUT: Nature(
        "executes, sends so many bytes of the answer, and closes without close_notify", ("bytes",), _SOME
    ),
    Fault.GARBAGE: Nature("executes, and answers with random bytes, 64 or so many", takes=("bytes", *_SOME)),
    Fault.EXTRA: Nature("sends so many bytes of the answer again behind it", ("bytes",), _SOME),
    Fault.IDLE_CLOSE: Nature("closes sessions that were idle for so many seconds", ("seconds",)),
    Fault.WRONG_CERTIFICATE: Nature("shows new clients a certificate of another CA, for other names", takes=("names",)),
    Fault.REFUSE_CREDENTIAL: Nature("rejects new clients with these common names", ("names",)),
    Fault.STANDBY: Nature(
        "is a standby: reports that in Query, and fails all but Query and Discover Versions", takes=_SOME
    ),
}

_OPERATIONS: Final = {operation_name(operation): operation for operation in Operation}


def _operation(value: object) -> object:
    """Return an operation, also by the name that the journal has for it."""
    return _OPERATIONS.get(value, value) if isinstance(value, str) else value


_NamedOperation = Annotated[Operation, BeforeValidator(_operation), PlainSerializer(operation_name)]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FaultSetting:
    """A fault with its parameters; raises ValueError for parameters that the fault does not take, or lacks.

    ``seconds``, ``bytes``, ``names`` and ``reset`` are explained in NATURES. The fault lifts itself after ``times``
    requests. It meets only requests that contain any of ``operations``, and only requests whose payloads name any of
    the objects in ``unique_identifiers``, if these are given.
    """

    fault: Fault
    seconds: NonNegativeFloat | None = None
    bytes: NonNegativeInt | None = None
    names: frozenset[str] = frozenset()
    times: PositiveInt | None = None
    operations: frozenset[_NamedOperation] = frozenset()
    unique_identifiers: frozenset[str] = frozenset()
    reset: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        nature = NATURES[self.fault]
        given = {name for name, value in vars(self).items() if value not in (None, frozenset()) and value is not False}
        given.discard("fault")
        if missing := {*nature.needs} - given:
            raise ValueError(f"{self.fault.value} needs {', '.join(sorted(missing))}")
        if meaningless := given - {*nature.needs, *nature.takes}:
            raise ValueError(f"{self.fault.value} takes no {', '.join(sorted(meaningless))}")
        return self

    def meets(self, operations: Collection[int], unique_identifiers: Collection[str] = ()) -> bool:
        """Return True if the fault meets a request of these operations on these objects."""
        return not (
            (self.operations and self.operations.isdisjoint(operations))
            or (self.unique_identifiers and self.unique_identifiers.isdisjoint(unique_identifiers))
        )


class Point(Enum):
    """The stages of a request in a key manager at which faults act."""

    REQUEST = auto()  # the request is read, and not executed
    EXECUTED = auto()  # executed, and noted in the journal
    ANSWER = auto()  # about to be answered


@dataclass(slots=True)
class Exchange:
    """One request and its answer, for faults to change."""

    stream: "FaultyStream"
    operations: Collection[int]
    unique_identifiers: Collection[str] = ()
    standby: bool = False
    answer: bytes = b""


class Faults:
    """The faults of one key manager that are on, and the tasks that wait for a change."""

    def __init__(self) -> None:
        self._left: dict[FaultSetting, float] = {}  # the number of requests that each fault may still meet
        self._changed = trio.lowlevel.ParkingLot()
        self._idle: dict[
            trio.CancelScope, float
        ] = {}  # sessions that wait for a request, and the time since which they wait

    def __repr__(self) -> str:
        return f"<Faults {', '.join(setting.fault.value for setting in self._left) or 'none'}>"

    def set(self, *settings: FaultSetting) -> None:
        """Switch these faults on, and all others off."""
        self._left = {setting: setting.times or math.inf for setting in settings}
        self._announce()

    def clear(self) -> None:
        """Switch all faults off."""
        self.set()

    def get(self, fault: Fault) -> FaultSetting | None:
        """Return the setting of a fault that is on, or None."""
        return next((setting for setting in self._left if setting.fault is fault), None)

    async def wait_on(self, fault: Fault) -> FaultSetting:
        """Wait until a fault is on, and return its setting."""
        while (setting := self.get(fault)) is None:
            await self._changed.park()
        return setting

    async def wait_off(self, fault: Fault) -> None:
        """Wait until a fault is off."""
        while self.get(fault) is not None:
            await self._changed.park()

    async def thawed(self) -> None:
        """Wait until FREEZE is off; to be called before anything is read or sent."""
        await self.wait_off(Fault.FREEZE)

    async def at(self, point: Point, exchange: Exchange) -> None:
        """Let the faults of this stage act on a request. Raises StreamClosedError if a fault ends the session."""
        await self.thawed()
        if self._left:
            for fault, act in _ACTIONS[point].items():
                setting = self._take(fault, exchange)
                if setting is not None:
                    await act(setting, exchange)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Limit the wait for a client's bytes by IDLE_CLOSE, also if that is set meanwhile.

        Raises StreamClosedError if the session was idle for too long.
        """
        with trio.CancelScope() as scope:
            self._idle[scope] = trio.current_time()
            self._limit(scope)
            try:
                yield
            finally:
                del self._idle[scope]
        if scope.cancelled_caught:
            raise StreamClosedError("idle for too long")

    def _take(self, fault: Fault, exchange: Exchange) -> FaultSetting | None:
        for setting in self._left:
            if setting.fault is fault and setting.meets(exchange.operations, exchange.unique_identifiers):
                self._left[setting] -= 1
                if not self._left[setting]:
                    del self._left[setting]
                    self._announce()
                return setting
        return None

    def _announce(self) -> None:
        self._changed.unpark_all()
        for scope in self._idle:
            self._limit(scope)

    def _limit(self, scope: trio.CancelScope) -> None:
        setting = self.get(Fault.IDLE_CLOSE)
        seconds = math.inf if setting is None or setting.seconds is None else setting.seconds
        scope.deadline = self._idle[scope] + seconds


# Actions of the faults of requests ------------------------------------------------------------------------------------

_Action = Callable[[FaultSetting, Exchange], Awaitable[None]]


async def _deaf(_setting: FaultSetting, exchange: Exchange) -> None:
    while await exchange.stream.receive_some():
        pass
    raise StreamClosedError("deaf: the client has closed")


async def _standby(_setting: FaultSetting, exchange: Exchange) -> None:
    exchange.standby = True


async def _slow(setting: FaultSetting, _exchange: Exchange) -> None:
    await trio.sleep(setting.seconds or 0)


async def _reset(setting: FaultSetting, exchange: Exchange) -> None:
    exchange.stream.reset()
    raise StreamClosedError(setting.fault.value)


async def _hang_up(setting: FaultSetting, exchange: Exchange) -> None:
    exchange.stream.close_politely()
    raise StreamClosedError(setting.fault.value)


async def _garbage(setting: FaultSetting, exchange: Exchange) -> None:
    """Answer with random bytes behind a byte that no message begins with: garbage at any length."""
    size = _GARBAGE if setting.bytes is None else setting.bytes
    exchange.answer = (b"\xff" + random.randbytes(size))[:size]  # noqa: S311 - not for secrets


async def _extra(setting: FaultSetting, exchange: Exchange) -> None:
    """Append bytes of the answer: as many as the answer has are a second well-formed answer, the worst case."""
    extra = setting.bytes or 0
    exchange.answer += (exchange.answer * (extra // max(len(exchange.answer), 1) + 1))[:extra]


async def _cut(setting: FaultSetting, exchange: Exchange) -> None:
    await exchange.stream.send_all(exchange.answer[: setting.bytes])
    exchange.stream.close()
    raise StreamClosedError(setting.fault.value)


#: The faults that act at each stage, in this order, and their actions.
_ACTIONS: Final[dict[Point, dict[Fault, _Action]]] = {
    Point.REQUEST: {
        Fault.HANG_UP: _hang_up,
        Fault.DEAF: _deaf,
        Fault.RESET_BEFORE_READING: _reset,
        Fault.STANDBY: _standby,
    },
    Point.EXECUTED: {Fault.SLOW: _slow, Fault.RESET_AFTER_EXECUTING: _reset},
    Point.ANSWER: {Fault.GARBAGE: _garbage, Fault.EXTRA: _extra, Fault.CUT: _cut},
}


# The faults of connections --------------------------------------------------------------------------------------------


class FaultyStream(TlsStream):
    """A key manager's side of a connection, which faults can freeze, reset, or open with a wrong certificate."""

    def __init__(self, sock: socket.socket, context: SSL.Context, faults: Faults) -> None:
        super().__init__(sock, context, server_side=True)
        self._faults = faults
        self._unwanted: frozenset[str] = frozenset()
        if (setting := faults.get(Fault.REFUSE_CREDENTIAL)) is not None:
            self._unwanted = setting.names
            self.connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        if (setting := faults.get(Fault.WRONG_CERTIFICATE)) is not None:
            self._disguise(setting.names or _ELSEWHERE)

    async def handshake(self, seen: bytes = b"") -> None:
        """Complete the handshake, and reject an unwanted client only after it, in TLS 1.3 by an alert."""
        await super().handshake(seen)
        if self.resumed and common_name(self.peer_certificate()) in self._unwanted:  # nothing was verified
            raise StreamClosedError("unwanted")

    def reset(self) -> None:
        """Close at once, so that the client gets a reset."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    async def _wait(self, ready: Callable[[int], Awaitable[None]]) -> None:
        await super()._wait(ready)
        await self._faults.thawed()
        self._check_open()

    def _verify(
        self, _connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, valid: int
    ) -> bool:
        self._verification.ran = True
        self._verification.error = self._verification.error or error
        unwanted = depth == 0 and common_name(certificate.to_cryptography()) in self._unwanted
        return bool(valid) and not unwanted

    def _disguise(self, names: frozenset[str]) -> None:
        """Show a wrong certificate of the same key type, which replaces the right one for all cipher suites."""
        own = self.connection.get_certificate(as_cryptography=True)
        is_rsa = own is not None and isinstance(own.public_key(), rsa.RSAPublicKey)
        wrong = _foreign("rsa" if is_rsa else "ecdsa", names)
        self.connection.use_certificate(wrong.certificate)
        self.connection.use_privatekey(wrong.private_key)


@cache
def _foreign(key_type: str, names: frozenset[str]) -> Credential:
    hosts = sorted(names)
    return Authority("somebody else", key_type).issue_server(hosts[0], hosts)


# Faults in files ------------------------------------------------------------------------------------------------------

_FILE: Final = TypeAdapter(dict[str, list[FaultSetting]])


def write_faults(path: Path, faults: Mapping[str, Sequence[FaultSetting]]) -> None:
    """Write the faults of key managers, by name, to a file. Its readers see the old or the new faults, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(_FILE.dump_json({name: list(settings) for name, settings in faults.items()}, exclude_defaults=True))
    new.replace(path)


def read_faults(path: Path) -> dict[str, list[FaultSetting]]:
    """Read the faults of key managers, by name; none if the file does not exist. Raises OSError and ValueError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    return _FILE.validate_json(text)


class FaultFile:
    """A file of faults, applied to the key managers of this process whenever it changes.

    A key manager whose entry is unchanged keeps its faults as they are: a fault that has lifted itself stays off.
    """

    def __init__(self, path: Path, faults: Mapping[str, Faults], complain: Callable[[str], object]) -> None:
        self._path = path
        self._faults = faults
        self._complain = complain
        self._seen: tuple[int, int, int] | None = None
        self._applied: dict[str, list[FaultSetting]] = {}

    def __repr__(self) -> str:
        return f"<FaultFile {self._path}>"

    async def watch(self) -> None:
        """Read the file every 50 ms if it has changed, for ever."""
        while True:
            self.look()
            await trio.sleep(_LOOK)

    def look(self) -> None:
        """Apply the file if it has changed. A file that can't be read is reported once, and changes nothing."""
        seen = _state(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            written = read_faults(self._path)
        except (OSError, ValueError) as error:
            self._complain(f"{self._path}: {_words(error)}; the faults stay as they were")
            return
        for name, faults in self._faults.items():
            settings = written.get(name, [])
            if settings != self._applied.get(name, []):
                faults.set(*settings)
                self._applied[name] = settings


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        state = os.stat(path)  # noqa: PTH116 - 20 times a second
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size


def _words(error: Exception) -> str:
    """Return the first of a file's mistakes."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
