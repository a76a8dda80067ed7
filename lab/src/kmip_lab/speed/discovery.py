"""Discover Versions, which qClient begins each session with (1.4 section 4.26)."""

from collections.abc import Sequence
from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.messages import ResponseItem, Version
from gateway.kmip.spec import ItemType, Operation, Tag
from kmip_lab.speed.trouble import TroubleError

_FIRST_WITH_DISCOVERY: Final[Version] = (1, 1)


def discovery(wanted: Sequence[Version]) -> bytes:
    """Ask which of these versions the server speaks, in the lowest of them that has the operation."""
    payload = b"".join(map(_encode_version, wanted))
    return encode_request(max(min(wanted), _FIRST_WITH_DISCOVERY), [Ask(Operation.DISCOVER_VERSIONS, payload)])


def spoken_versions(answer: ResponseItem) -> list[Version]:
    """The versions in the answer. Raises TroubleError where it can't be read."""
    span = answer.fields.get(Tag.RESPONSE_PAYLOAD, (0, 0))
    found = []
    try:
        for version in ttlv.walk(answer.frame, *span):
            if version.tag == Tag.PROTOCOL_VERSION and version.type == ItemType.STRUCTURE:
                major, minor = ttlv.walk(answer.frame, version.start, version.end)
                found.append((ttlv.read_integer(answer.frame, major), ttlv.read_integer(answer.frame, minor)))
    except (ProtocolError, ValueError):
        raise TroubleError("unreadable answer", "the answer to Discover Versions can't be read") from None
    return found


def _encode_version(version: Version) -> bytes:
    major, minor = version
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
    )
