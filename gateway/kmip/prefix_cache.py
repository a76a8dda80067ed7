"""Cache of decoded prefixes: a message that begins like an earlier message is not decoded again up to its payload.

The prefix of a message is everything before the value of its only batch item's payload: the heads of all structures,
the header, Operation, and in responses Result Status. A kept connection sends the same prefix with every Get.

Proof that a frame decodes to the cached fields if its prefix is cached and its length is that of the cached frame:

1. The prefix fixes its own length: it holds byte 15, the length of the header, from which ``find`` and ``add`` compute
   the end of the prefix. So each frame has exactly one prefix.
2. The message is prefix and payload, and nothing else: ``add`` takes a message only if its payload begins at the end of
   the prefix and ends at the end of the frame. So all fields, all comparisons of lengths and the version follow from
   the prefix and the frame's length.
3. Of the payload, the decoder checks only the depth. ``find`` checks that of every frame.

The limits of batch items and fields are no part of the proof: there is one item, and long frames are counted before.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.messages import Fields, Version
from gateway.kmip.spec import Tag

OUTER_DEPTH: Final = 3  # levels above a payload's fields: message, header or batch item, and their fields

_HEADER_LENGTH: Final = 15  # position of the last byte of the header's length; a cached header has at most 255 bytes
_AUTHENTICATION: Final = int(Tag.AUTHENTICATION)
_ENTRIES: Final = 500  # responses bring a new prefix every second, by their Time Stamp
_SIZE: Final = ttlv.HEADER_SIZE


class Prefix(NamedTuple):
    """The decoded fields of a message with one batch item, and the span of its payload's value."""

    version: Version
    header: Fields
    item: Fields
    payload: tuple[int, int]


class PrefixCache:
    """Decoded prefixes of one direction, at most 500; a full cache is emptied.

    ``payload`` is the tag of the direction's payload. ``fixed_size`` is the length of the shortest prefix, in bytes,
    without the fields of the header.
    """

    __slots__ = ("_fixed_size", "_payload_tag", "_prefixes")

    def __init__(self, payload: Tag, fixed_size: int) -> None:
        self._payload_tag = int(payload)
        self._fixed_size = fixed_size
        self._prefixes: dict[bytes, Prefix] = {}

    def __repr__(self) -> str:
        return f"<PrefixCache of messages with {Tag(self._payload_tag).name}: {len(self)} prefixes>"

    def __len__(self) -> int:
        return len(self._prefixes)

    def find(self, frame: bytes, max_depth: int) -> Prefix | None:
        """Return what ``add`` has kept for a frame with this prefix and this length, or None.

        Raises ProtocolError if structures in this frame's own payload nest too deeply for ``max_depth``.
        """
        if len(frame) <= _HEADER_LENGTH:
            return None
        prefix = self._prefixes.get(frame[: self._fixed_size + frame[_HEADER_LENGTH]])
        if prefix is None:
            return None
        start, end = prefix.payload
        if end != len(frame):
            return None
        if end - start > (max_depth - OUTER_DEPTH) * _SIZE:
            _check_payload(frame, prefix, max_depth)
        return prefix

    def add(self, frame: bytes, version: Version, header: Fields, item: Fields) -> None:
        """Keep the decoded fields of a message with one batch item, if all fields before its payload are short.

        Short fields have a head and eight bytes. So no credential, key or object name is kept; of texts, at most a
        Client Correlation Value of eight bytes.
        """
        payload = item.get(self._payload_tag)
        header_length = frame[_HEADER_LENGTH]
        prefix_length = self._fixed_size + header_length
        length_if_short = 5 * _SIZE + 2 * _SIZE * (len(header) - 1)  # Protocol Version has two fields in it
        if payload != (prefix_length, len(frame)) or header_length != length_if_short or _AUTHENTICATION in header:
            return
        if len(self._prefixes) >= _ENTRIES:
            self._prefixes.clear()
        self._prefixes[frame[:prefix_length]] = Prefix(version, header, item, payload)


def check_payload_in_steps(frame: bytes, prefix: Prefix, max_depth: int) -> Iterator[None]:
    """Check the depth of a payload as ``find`` does, and yield as ``ttlv.check_depth_in_steps`` does."""
    try:
        yield from ttlv.check_depth_in_steps(frame, *prefix.payload, max_depth - OUTER_DEPTH)
    except ProtocolError as error:
        error.version = prefix.version
        raise


def _check_payload(frame: bytes, prefix: Prefix, max_depth: int) -> None:
    try:
        ttlv.check_depth(frame, *prefix.payload, max_depth - OUTER_DEPTH)
    except ProtocolError as error:
        error.version = prefix.version
        raise
