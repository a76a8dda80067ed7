"""A key manager that answers every request with success, and records who it took the client for.

It records the client's certificate of each session, and the Authentication of each request. It runs in threads of the
test's process, on the TLS of Python's standard library.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultStatus, Tag


class Seen(NamedTuple):
    """One request: when it came, the session's number, its client's certificate in DER, and its Authentication."""

    time: float

    session: int
    certificate: bytes
    request: Request
    authentication: bytes | None

    @property
    def operation(self) -> int:
        """The first operation."""
        return self.request.items[0].operation

    @property
    def identifiers(self) -> list[bytes]:
        """The unique identifiers of all items."""
        return [each for item in self.request.items for each in item.unique_identifiers]


@dataclass
class Witness:
    """The requests that one key manager has received; ``port`` is of 127.0.0.1."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    sessions: int = 0

    @property
    def for_clients(self) -> list[Seen]:
        """The requests of clients: those that name an object."""
        return [each for each in self.seen if each.identifiers]


@contextmanager
def witness(certificate: Path, private_key: Path, client_ca: Path) -> Iterator[Witness]:
    """Run a witness; it trusts clients of ``client_ca``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)
    context.load_verify_locations(client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        it = Witness(listener.getsockname()[1])
        accepting = threading.Thread(target=_accept, args=(it, listener, context), daemon=True)
        accepting.start()
        try:
            yield it
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)


def _accept(it: Witness, listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            sock, _peer = listener.accept()
        except OSError:
            return
        it.sessions += 1
        threading.Thread(target=_serve, args=(it, it.sessions, sock, context), daemon=True).start()


def _serve(it: Witness, number: int, sock: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError), context.wrap_socket(sock, server_side=True) as stream:
        certificate = stream.getpeercert(binary_form=True) or b""
        while frame := read_message(stream):
            request = decode_request(frame)
            span = request.fields.get(Tag.AUTHENTICATION)
            shown = None if span is None else frame[span[0] : span[1]]
            it.seen.append(Seen(time.monotonic(), number, certificate, request, shown))
            stream.sendall(_answer(request))


def read_message(stream: ssl.SSLSocket) -> bytes:
    """Return the next whole message; empty at the end."""
    head = _read(stream, 8)
    return head + _read(stream, int.from_bytes(head[4:], "big")) if head else b""


def _read(stream: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def _answer(request: Request) -> bytes:
    return compose.encode_response(request.version, [_result(item) for item in request.items])


def _result(item: object) -> compose.Result:
    operation, identifiers = item.operation, item.unique_identifiers  # type: ignore[attr-defined]
    payload = b"".join(ttlv.octets(Tag.UNIQUE_IDENTIFIER, each) for each in identifiers)
    payload = payload.replace(b"\x42\x00\x94\x08", b"\x42\x00\x94\x07")
    if operation == Operation.DISCOVER_VERSIONS:
        payload = b"".join(_version(version) for version in ((2, 1), (2, 0), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0)))
    return compose.Result(ResultStatus.SUCCESS, operation, item.unique_batch_item_id, payload=payload)  # type: ignore[attr-defined]


def _version(version: tuple[int, int]) -> bytes:
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )


class PlainClient:
    """A client on the TLS of Python's standard library."""

    def __init__(self, port: int, certificate: Path, private_key: Path, ca: Path) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(certificate, private_key)
        self._stream = context.wrap_socket(
            socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname="localhost"
        )

    def ask(self, frame: bytes) -> bytes:
        """Send a request, and return the answer."""
        self._stream.sendall(frame)
        return read_message(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.close()


def get(identifier: str, version: tuple[int, int] = (1, 4), *, header: Sequence[bytes] = ()) -> bytes:
    """Return a Get of one object."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, identifier)
    return compose.encode_request(version, [compose.Ask(Operation.GET, payload)], header=header)
