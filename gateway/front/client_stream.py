"""What a conversation needs of its client's connection, wherever TLS ends."""

from collections.abc import Awaitable, Callable
from typing import Protocol


class ClientStream(Protocol):
    """A client's connection after the handshake: a TlsStream, or a WorkerLink if TLS ends in a TLS worker."""

    before_read: Callable[[], Awaitable[None] | None] | None

    @property
    def is_read_delayed(self) -> bool:
        """True while bytes have arrived and were not returned: a drain must wait for them."""

    def peer_certificate_der(self) -> bytes | None:
        """Return the client's certificate in DER."""

    async def receive_some(self) -> bytes:
        """Wait for bytes and return them, at least of a request's beginning; an empty result is the end."""

    def acknowledge(self) -> None:
        """Have the kernel acknowledge the received bytes at once."""

    def peer_has_left(self) -> bool:
        """Return True if the client has closed its sending side or reset."""

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as possible without waiting; return the number of bytes. Raises StreamClosedError."""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all bytes. Raises StreamClosedError."""

    async def aclose(self, *, linger: float = 0.0) -> None:
        """Close; before, read and discard bytes for up to ``linger`` seconds."""

    def close(self) -> None:
        """Close at once."""

    def close_politely(self) -> None:
        """Send close_notify if the socket takes it, and close."""
