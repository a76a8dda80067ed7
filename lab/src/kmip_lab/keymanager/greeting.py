"""What a key manager says of itself: Discover Versions and Query."""

from collections.abc import Iterable
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.messages import Version
from gateway.kmip.spec import Tag
from kmip_lab.keymanager.call import Call, Done
from kmip_lab.keymanager.keys import OBJECT_TAGS
from kmip_lab.keymanager.numbers import QueryFunction

#: The protocol versions that are spoken here, the preferred one first.
VERSIONS: Final[tuple[Version, ...]] = ((2, 1), (2, 0), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0))

#: Cluster Info, in the Server Information of 2.1; what 1.x clients find there is the vendor's own.
_CLUSTER_INFO: Final = 0x420134

VENDOR: Final = "kmip-gateway simulated key manager: not for production"


def discover_versions(call: Call) -> Done:
    """Discover Versions (1.4 section 4.26): those that client and server speak, or all where the client names none."""
    asked = [
        (node.integer(Tag.PROTOCOL_VERSION_MAJOR), node.integer(Tag.PROTOCOL_VERSION_MINOR))
        for node in call.payload.find_all(Tag.PROTOCOL_VERSION)
    ]
    spoken = [version for version in VERSIONS if not asked or version in asked]
    return Done(b"".join(_encode_version(version) for version in spoken))


def query(call: Call, operations: Iterable[int]) -> Done:
    """Query (1.4 section 4.25): operations, objects and server information; what else is asked for is left out.

    Cluster Info tells the role and, of a master that replicates, the replicas that are in step.
    """
    asked = {node.as_number() for node in call.payload.find_all(Tag.QUERY_FUNCTION)}
    parts: list[bytes] = []
    if QueryFunction.QUERY_OPERATIONS in asked:
        parts += [ttlv.enumeration(Tag.OPERATION, operation) for operation in operations]
    if QueryFunction.QUERY_OBJECTS in asked:
        parts += [ttlv.enumeration(Tag.OBJECT_TYPE, object_type) for object_type in OBJECT_TAGS]
    if QueryFunction.QUERY_SERVER_INFORMATION in asked:
        parts.append(ttlv.text(Tag.VENDOR_IDENTIFICATION, VENDOR))
        role = "standby" if call.standby else "master"
        replicas = f";InStep={','.join(call.in_step)}" if call.in_step else ""
        name, cluster = (
            ttlv.text(Tag.SERVER_NAME, call.server),
            ttlv.text(_CLUSTER_INFO, f"ServerType={role}{replicas}"),
        )
        parts.append(ttlv.structure(Tag.SERVER_INFORMATION, name, cluster))
    return Done(b"".join(parts))


def _encode_version(version: Version) -> bytes:
    major, minor = version
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
    )
