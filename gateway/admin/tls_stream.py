"""The admin port's clients over TLS, as the stream that ``server`` serves."""

import trio

from gateway.errors import GatewayError
from gateway.tls import TlsStream

_MOST: float = 65536  # bytes that TlsStream may return at once


class TlsAdminStream(trio.abc.HalfCloseableStream):
    """A TlsStream as trio's stream. A client that does not shake hands in time is closed by the caller's deadline."""

    def __init__(self, stream: TlsStream) -> None:
        self._stream = stream

    @property
    def has_certificate(self) -> bool:
        """True if the client has shown a certificate, which the handshake has then verified."""
        return self._stream.peer_certificate_der() is not None

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option of the socket."""
        self._stream.setsockopt(level, option, value)

    async def receive_some(self, _max_bytes: int | None = None) -> bytes:
        """Return at most one TLS record, whatever ``max_bytes`` says."""
        try:
            return await self._stream.receive_some()
        except GatewayError as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes. Raises BrokenResourceError if the client has closed."""
        try:
            await self._stream.send_all(bytes(data))
        except GatewayError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: nothing here asks."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Do nothing: a client reads an answer by its length, and the end comes with close_notify."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Send close_notify, if that is possible without waiting, and close."""
        self._stream.close_politely()
        await trio.lowlevel.checkpoint()
