"""Query and Discover Versions: what a key manager says of itself."""

from gateway.kmip import ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, Tag
from lab.tests.talk import (
    VERSIONS,
    Talk,
    refused,
)


def test_query_tells_what_it_is_asked(talk: Talk) -> None:
    operations, objects, server = (ttlv.enumeration(Tag.QUERY_FUNCTION, asked) for asked in (1, 2, 3))
    told = talk.ask(Operation.QUERY, operations, objects, server).payload
    supported = {node.as_number() for node in told.find_all(Tag.OPERATION)}
    assert {Operation.CREATE, Operation.GET, Operation.QUERY} <= supported
    assert (Operation.SET_ATTRIBUTE in supported) == (talk.version >= (2, 0))
    assert ObjectType.CERTIFICATE in {node.as_number() for node in told.find_all(Tag.OBJECT_TYPE)}
    assert "not for production" in (told.text(Tag.VENDOR_IDENTIFICATION) or "")
    information = told.structure(Tag.SERVER_INFORMATION)
    assert information is not None
    assert information.text(Tag.SERVER_NAME) == "atlanta-001"
    assert talk.ask(Operation.QUERY, objects).payload.find(Tag.OPERATION) is None


def version_item(version: tuple[int, int]) -> bytes:
    return ttlv.structure(
        Tag.PROTOCOL_VERSION,
        ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )


def test_discover_versions(talk: Talk) -> None:
    answer = talk.ask(Operation.DISCOVER_VERSIONS)
    if talk.version == (1, 0):  # it came with 1.1
        refused(answer, ResultReason.OPERATION_NOT_SUPPORTED)
        return
    assert [node.encoded for node in answer.payload.children] == [version_item(one) for one in VERSIONS[::-1]]
    some = talk.ask(Operation.DISCOVER_VERSIONS, *map(version_item, [(1, 2), (9, 9), (2, 0)]))
    assert [node.encoded for node in some.payload.children] == [version_item((2, 0)), version_item((1, 2))]
