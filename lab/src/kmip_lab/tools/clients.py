"""A client of a gateway or key manager: it opens a session, sends requests, and reads the answers."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import StreamClosedError
from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response
from gateway.kmip.spec import Tag
from kmip_lab.tools.requests import create_key

MAX_RESPONSE_SIZE = 16 << 20  # bytes


class Client:
    """One session, as a client sees it."""

    def __init__(self, stream: tls.TlsStream) -> None:
        self.stream = stream
        self._reader = FrameReader(Tag.RESPONSE_MESSAGE, MAX_RESPONSE_SIZE)

    async def ask(self, frame: bytes) -> Response:
        """Send a request and return the answer. Raises StreamClosedError if the session ends without an answer."""
        await self.stream.send_all(frame)
        return await self.read_response()

    async def read_response(self) -> Response:
        """Return the next answer. Raises StreamClosedError if the session ends without an answer."""
        while True:
            data = await self.stream.receive_some()
            if not data:
                raise StreamClosedError("closed without an answer")
            answer = self._reader.feed(data)
            if answer is not None:
                return decode_response(answer)


@asynccontextmanager
async def connect(address: Address, context: SSL.Context, *, server_name: str | None = None) -> AsyncIterator[Client]:
    """Open a session for the length of a block.

    The server's certificate must be for ``server_name``, by default the address's host. Raises OSError, TlsError.
    """
    connected = trio.socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        await connected.connect((address.host, address.port))
    except BaseException:
        connected.close()
        raise
    name = server_name or address.host
    stream = tls.TlsStream(socket.socket(fileno=connected.detach()), context, server_side=False, server_name=name)
    try:
        await stream.handshake()
        tls.check_server(stream, name, frozenset())
        yield Client(stream)
    finally:
        stream.close_politely()


async def created_key(address: Address, context: SSL.Context) -> str:
    """Create an AES-256 key and return its unique identifier. The server's certificate must be for "localhost"."""
    async with connect(address, context, server_name="localhost") as client:
        created = await client.ask(create_key())
    return created.items[0].unique_identifiers[0].decode()
