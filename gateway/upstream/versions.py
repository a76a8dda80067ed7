"""Versions: the gateway's own answer to Discover Versions, from the versions that health checks have found.

Many clients send Discover Versions on every session, and some take the answer as a proof that the server works.
Therefore the gateway answers only while a key manager is available to the client, and names the versions that all
available key managers speak.
"""

from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Request, Version, read_version
from gateway.kmip.spec import Operation, Tag
from gateway.upstream.balancer import Balancer

_SINCE: Final = (1, 1)  # the first version with Discover Versions

#: Fields of a plain request (1.4 section 7.2). A request with any other field goes to a key manager.
_PLAIN_HEADER: Final = frozenset(
    {
        Tag.PROTOCOL_VERSION,
        Tag.MAXIMUM_RESPONSE_SIZE,
        Tag.BATCH_ERROR_CONTINUATION_OPTION,
        Tag.BATCH_ORDER_OPTION,
        Tag.TIME_STAMP,
        Tag.BATCH_COUNT,
    }
)
_PLAIN_ITEM: Final = frozenset({Tag.OPERATION, Tag.UNIQUE_BATCH_ITEM_ID, Tag.REQUEST_PAYLOAD})


class CommonVersions:
    """Answers Discover Versions instead of the key managers."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def answer(self, request: Request, credential: str) -> bytes | None:
        """Return the answer (1.4 section 4.26), or None if a key manager must answer.

        None for other operations, for requests with extensions or credentials, for a version that not all available
        key managers speak, if an available key manager has not reported its versions, and if none is available.
        """
        if request.items[0].operation != Operation.DISCOVER_VERSIONS or len(request.items) > 1:
            return None
        spoken = self._spoken(credential)
        if request.version not in spoken or request.version < _SINCE:
            return None
        try:
            asked = _asked(request)
        except ProtocolError:
            return None
        if asked is None:
            return None
        versions = sorted((version for version in spoken if not asked or version in asked), reverse=True)
        frame = compose.versions_discovered(request, versions)
        most = request.maximum_response_size
        return frame if most is None or len(frame) <= most else None

    def _spoken(self, credential: str) -> frozenset[Version]:
        """Return the versions that all backends available to a credential speak; empty if that is not known."""
        available = [backend for backend in self._balancer.backends if backend.is_reachable_with(credential)]
        spoken = [backend.versions for backend in available if backend.versions is not None]
        if not available or len(spoken) < len(available):
            return frozenset()
        return frozenset.intersection(*spoken)


def _asked(request: Request) -> list[Version] | None:
    """Return the versions that a client names, empty if it names none; None if the request is not a plain one."""
    frame = request.frame
    parts = list(ttlv.walk(frame, ttlv.HEADER_SIZE, len(frame)))
    if [part.tag for part in parts] != [Tag.REQUEST_HEADER, Tag.BATCH_ITEM]:
        return None
    for part, plain in zip(parts, (_PLAIN_HEADER, _PLAIN_ITEM), strict=True):
        if not {field.tag for field in ttlv.walk(frame, part.start, part.end)} <= plain:
            return None
    span = request.items[0].fields.get(Tag.REQUEST_PAYLOAD)
    return None if span is None else [read_version(frame, field) for field in ttlv.walk(frame, *span)]
