"""An answer of the admin port, before it becomes HTTP."""

from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import Final, NamedTuple

_TEXT: Final = "text/plain; charset=utf-8"


class HttpAnswer(NamedTuple):
    """An answer: status, body, media type, and further headers.

    If ``stream`` is given, the body is what it yields, until the client disconnects.
    """

    status: HTTPStatus
    body: bytes
    media_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()
    stream: Callable[[], AsyncGenerator[bytes]] | None = None

    @classmethod
    def of(cls, status: HTTPStatus, text: str = "") -> "HttpAnswer":
        """Return an answer of one line: ``text``, or the status's own phrase."""
        return cls(status, f"{text or status.phrase}\n".encode())
