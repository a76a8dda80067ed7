"""Tests of the gateway's own answer to Discover Versions."""

from typing import Any

import pytest

from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Version, read_version
from gateway.kmip.spec import Operation, Tag
from gateway.upstream.backend import Backend
from gateway.upstream.balancer import Balancer
from gateway.upstream.slots import Slots
from gateway.upstream.versions import CommonVersions
from tests.kit.fake_backends import ask


class FakePool:
    """The part of a pool that decides if its backend is reachable."""

    is_failing = False


def backend(name: str, *versions: Version) -> Backend:
    pools: dict[str, Any] = {"red": FakePool(), "blue": FakePool()}
    it = Backend(name, Slots(1), pools)
    it.versions = frozenset(versions) or None
    return it


def question(*versions: Version, version: Version = (1, 2), extra: bytes = b"") -> Request:
    payload = extra + b"".join(
        ttlv.structure(
            Tag.PROTOCOL_VERSION,
            ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
            ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
        )
        for major, minor in versions
    )
    return decode_request(compose.encode_request(version, [compose.Ask(Operation.DISCOVER_VERSIONS, payload)]))


def answered(versions: CommonVersions, request: Request, credential: str = "red") -> list[Version] | None:
    frame = versions.answer(request, credential)
    if frame is None:
        return None
    item = decode_response(frame).items[0]
    span = item.fields.get(Tag.RESPONSE_PAYLOAD)
    assert span is not None
    return [read_version(frame, field) for field in ttlv.walk(frame, *span)]


def test_the_answer_names_the_versions_that_all_backends_speak() -> None:
    versions = CommonVersions(Balancer([backend("a", (1, 2), (1, 3), (1, 4)), backend("b", (1, 1), (1, 2), (1, 3))]))
    assert answered(versions, question()) == [(1, 3), (1, 2)]
    assert answered(versions, question((1, 4), (1, 3))) == [(1, 3)]
    assert answered(versions, question((1, 4))) == []


def test_only_backends_that_are_reachable_with_the_credential_count() -> None:
    a, b = backend("a", (1, 2), (1, 4)), backend("b", (1, 2))
    versions = CommonVersions(Balancer([a, b]))
    pool: Any = b.pools["red"]
    pool.is_failing = True
    assert answered(versions, question()) == [(1, 4), (1, 2)]
    assert answered(versions, question(), "blue") == [(1, 2)]


def test_a_key_manager_answers_while_versions_are_not_known() -> None:
    assert answered(CommonVersions(Balancer([backend("a", (1, 2)), backend("b")])), question()) is None
    assert answered(CommonVersions(Balancer([])), question()) is None


@pytest.mark.parametrize(
    "request_",
    [
        ask("key-1"),
        question(version=(1, 0)),
        question(version=(1, 4)),
        decode_request(compose.encode_request((1, 2), [compose.Ask(Operation.DISCOVER_VERSIONS)] * 2)),
        question(extra=ttlv.text(Tag.UNIQUE_IDENTIFIER, "key-1")),
    ],
    ids=["Get", "before 1.1", "not spoken by all", "two items", "an odd payload"],
)
def test_a_key_manager_answers_any_other_request(request_: Request) -> None:
    assert answered(CommonVersions(Balancer([backend("a", (1, 0), (1, 2))])), request_) is None
