"""Framing: whole messages from bytes in any chunks.

A message is a Structure; its head has its length (KMIP 1.4 section 9.1). No memory is allocated for a declared length
before its bytes have arrived.
"""

from typing import Final

from gateway.errors import MessageTooLargeError, ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.spec import Tag

_KIND: Final = {Tag.REQUEST_MESSAGE: "Request Message", Tag.RESPONSE_MESSAGE: "Response Message"}

_PART: Final = 16384  # bytes at which a part of a long message is complete


class FrameReader:
    """Collects the bytes of one direction of a connection.

    ``tag`` is the tag of this direction's messages: Request Message or Response Message. ``max_size`` bounds a message,
    in bytes, head included.

    Call ``next_frame`` until it returns None before the next ``feed``: then the reader holds no more than the beginning
    of one message and the last chunk.
    """

    __slots__ = (
        "_in_parts",
        "_parts",
        "_size",
        "_tag",
        "_word",
        "beginning",
        "max_size",
    )

    def __init__(self, tag: Tag, max_size: int) -> None:
        self._tag = tag
        self._word = ttlv.word(tag, ttlv.STRUCTURE)
        self.max_size = max_size
        self.beginning = bytearray()  # the first bytes held; empty if none are held
        self._size = 0  # of the message at the beginning of the buffer; 0 if its head was not read yet
        self._parts: list[bytearray] = []  # further bytes of a long message: to grow one buffer would copy it
        self._in_parts = 0

    def __repr__(self) -> str:
        return f"<FrameReader {_KIND.get(self._tag, self._tag)}: {len(self)} bytes held>"

    def __len__(self) -> int:
        """The number of bytes held: fed, and not yet returned."""
        return len(self.beginning) + self._in_parts

    def feed(self, data: bytes) -> bytes | None:
        """Add a chunk. Return the first whole message now held, or None. Raises ProtocolError as ``next_frame`` does.

        A chunk that is exactly one message, the usual case, is returned without a copy.
        """
        if self._size:
            return self._go_on(data)
        if not self.beginning and len(data) >= ttlv.HEADER_SIZE and self._frame_size(data) == len(data):
            return data
        self.beginning += data
        return self.next_frame()

    def next_frame(self) -> bytes | None:
        """Remove and return the first whole message, or return None.

        Raises ProtocolError as soon as the bytes can't begin a message, and MessageTooLargeError as soon as the
        declared length exceeds the limit.
        """
        if self._size:  # the last ``feed`` found the message incomplete
            return None
        if len(self.beginning) < ttlv.HEADER_SIZE:
            self._check_beginning()
            return None
        size = self._frame_size(self.beginning)
        if len(self.beginning) < size:
            self._size = size
            return None
        frame = bytes(self.beginning[:size])
        del self.beginning[:size]
        return frame

    def _go_on(self, data: bytes) -> bytes | None:
        """Add bytes of a message whose size is known. Return the message once it is whole."""
        parts = self._parts
        if parts and len(parts[-1]) < _PART:
            parts[-1] += data
        else:
            parts.append(bytearray(data))
        self._in_parts += len(data)
        if len(self) < self._size:
            return None
        excess = len(self) - self._size  # no more than the last chunk
        rest = parts[-1][len(parts[-1]) - excess :]
        del parts[-1][len(parts[-1]) - excess :]
        frame = b"".join([self.beginning, *parts])
        self.beginning, self._size = rest, 0
        self._parts, self._in_parts = [], 0
        return frame

    def _frame_size(self, data: bytes | bytearray) -> int:
        tag_and_type, length = ttlv.HEAD.unpack_from(data)
        if tag_and_type != self._word:
            raise ProtocolError(self._wrong_kind(bytes(data[:8])))
        if length % 8:
            raise ProtocolError(f"the message's length {length} is not a multiple of 8")
        if length + ttlv.HEADER_SIZE > self.max_size:
            raise MessageTooLargeError(
                f"the message has {length + ttlv.HEADER_SIZE} bytes, over the limit of {self.max_size}"
            )
        size: int = length + ttlv.HEADER_SIZE
        return size

    def _check_beginning(self) -> None:
        held = bytes(self.beginning[:4])
        if not self._word.to_bytes(4, "big").startswith(held):
            raise ProtocolError(self._wrong_kind(held))

    def _wrong_kind(self, begin: bytes) -> str:
        if begin[:4] in (b"POST", b"GET ", b"HEAD", b"PUT ", b"OPTI", b"PRI "):
            return "the client sent HTTP; this port does not serve KMIP over HTTPS: use the TTLV encoding over TLS"
        return f"the bytes are no {_KIND.get(self._tag, self._tag)}"
