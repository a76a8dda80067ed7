"""Bytes in, in any chunks; whole messages out.

A message is one Structure; its head says how long it is (KMIP 1.4 section 9.1). Nothing is set aside for a declared
length before its bytes are there.
"""

from typing import Final

from gateway.errors import MessageTooLargeError, ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import Tag

_KIND: Final = {Tag.REQUEST_MESSAGE: "Request Message", Tag.RESPONSE_MESSAGE: "Response Message"}

_PART: Final = 16384  # bytes from which on a part of a long message takes no more


class FrameReader:
    """Collects the bytes of one direction of a connection.

    ``tag`` is what every message of this direction begins with: Request Message or Response Message. ``max_size``
    bounds one message, in bytes, head included.

    Ask next_frame until it has nothing more before feeding again: then no more is held than the beginning of one
    message, and what was fed last.
    """

    def __init__(self, tag: Tag, max_size: int) -> None:
        self._tag = tag
        self._word = ttlv.word(tag, ttlv.STRUCTURE)
        self._max_size = max_size
        self._buffer = bytearray()  # the beginning of what is held
        self._size = 0  # of the message that begins in it; 0 if its head is not there or was not looked at
        self._parts: list[bytearray] = []  # what follows, if that message is long: to grow one buffer copies it anew
        self._in_parts = 0

    def __repr__(self) -> str:
        return f"<FrameReader {_KIND.get(self._tag, self._tag)}: {len(self)} bytes held>"

    def __len__(self) -> int:
        """Bytes held: fed, and not yet given out."""
        return len(self._buffer) + self._in_parts

    def feed(self, data: bytes) -> bytes | None:
        """Take a chunk; return the first whole message now held, if there is one.

        A chunk that is exactly one message, the usual case, is returned as it is. Raises ProtocolError as next_frame.
        """
        if self._size:
            return self._go_on(data)
        if not self._buffer and len(data) >= ttlv.HEADER_SIZE and self._frame_size(data) == len(data):
            return data
        self._buffer += data
        return self.next_frame()

    def next_frame(self) -> bytes | None:
        """Return the first whole message held and let go of it, or None.

        Raises ProtocolError as soon as what is held can't begin a message, and MessageTooLargeError as soon as its
        declared length is known to be over the limit.
        """
        if self._size:  # it was not whole when it was fed last
            return None
        if len(self._buffer) < ttlv.HEADER_SIZE:
            self._check_beginning()
            return None
        size = self._frame_size(self._buffer)
        if len(self._buffer) < size:
            self._size = size
            return None
        frame = bytes(self._buffer[:size])
        del self._buffer[:size]
        return frame

    def _go_on(self, data: bytes) -> bytes | None:
        """Take more of a message whose size is known; return it once it is whole."""
        parts = self._parts
        if parts and len(parts[-1]) < _PART:
            parts[-1] += data
        else:
            parts.append(bytearray(data))
        self._in_parts += len(data)
        if len(self) < self._size:
            return None
        behind = len(self) - self._size  # no more than was fed last
        rest = parts[-1][len(parts[-1]) - behind :]
        del parts[-1][len(parts[-1]) - behind :]
        frame = b"".join([self._buffer, *parts])
        self._buffer, self._size = rest, 0
        self._parts, self._in_parts = [], 0
        return frame

    def _frame_size(self, data: bytes | bytearray) -> int:
        tag_and_type, length = ttlv.HEAD.unpack_from(data)
        if tag_and_type != self._word:
            raise ProtocolError(self._stranger(bytes(data[:8])))
        if length % 8:
            raise ProtocolError(f"message length {length} is not a multiple of 8")
        if length + ttlv.HEADER_SIZE > self._max_size:
            raise MessageTooLargeError(
                f"message of {length + ttlv.HEADER_SIZE} bytes, over the limit of {self._max_size}"
            )
        size: int = length + ttlv.HEADER_SIZE
        return size

    def _check_beginning(self) -> None:
        held = bytes(self._buffer[:4])
        if not self._word.to_bytes(4, "big").startswith(held):
            raise ProtocolError(self._stranger(held))

    def _stranger(self, begin: bytes) -> str:
        if begin[:4] in (b"POST", b"GET ", b"HEAD", b"PUT ", b"OPTI", b"PRI "):
            return "this is HTTP; KMIP over HTTPS is not served on this port, use the TTLV transport"
        return f"not a {_KIND.get(self._tag, self._tag)}"
