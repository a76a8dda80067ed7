"""Discover Versions: the gateway answers with the versions that all key managers speak."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.dispatcher import Answer
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Refusal
from gateway.upstream.health import Verdict
from tests.kit.deployment import Deployment, deployment, refusal
from tests.kit.fake_backends import (
    Connection,
    ask,
    in_virtual_time,
)
from tests.kit.marked import with_marks

# Discover Versions ----------------------------------------------------------------------------------------------------


def discover(
    *versions: Version, version: Version = (1, 1), header: tuple[bytes, ...] = (), more: bytes = b""
) -> Request:
    listed = b"".join(
        ttlv.structure(
            Tag.PROTOCOL_VERSION,
            ttlv.integer(Tag.PROTOCOL_VERSION_MAJOR, major),
            ttlv.integer(Tag.PROTOCOL_VERSION_MINOR, minor),
        )
        for major, minor in versions
    )
    asked = [compose.Ask(Operation.DISCOVER_VERSIONS, listed + more)]
    return decode_request(compose.encode_request(version, asked, header=header))


def versions_in(answer: Answer) -> list[Version]:
    item = decode_response(answer.frame).items[0]
    assert (item.operation, item.status) == (Operation.DISCOVER_VERSIONS, ResultStatus.SUCCESS)
    frame = answer.frame
    return [
        (
            ttlv.read_integer(frame, ttlv.find(frame, one.start, one.end, Tag.PROTOCOL_VERSION_MAJOR) or one),
            ttlv.read_integer(frame, ttlv.find(frame, one.start, one.end, Tag.PROTOCOL_VERSION_MINOR) or one),
        )
        for one in ttlv.walk(frame, *item.fields[Tag.RESPONSE_PAYLOAD])
    ]


@asynccontextmanager
async def deployment_speaking(*spoken: Sequence[Version] | None) -> AsyncIterator[Deployment]:
    """Deploy key managers that speak these versions; None means not asked yet."""
    async with deployment(*map(str, range(len(spoken))), replication=with_marks) as it:
        for backend, versions in zip(it.backends, spoken, strict=True):
            backend.versions = None if versions is None else frozenset(versions)
        yield it


OLD: list[Version] = [(1, 0), (1, 1), (1, 2)]
NEW: list[Version] = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]


@in_virtual_time
async def test_the_gateway_answers_with_the_common_versions_newest_first() -> None:
    async with deployment_speaking(OLD, NEW) as it:
        answer = await it.ask(discover())

        assert versions_in(answer) == [(1, 2), (1, 1)]
        assert (answer.response, answer.refusal) == (None, None)
        assert not it.key_managers[0].connections + it.key_managers[1].connections


@in_virtual_time
async def test_a_clients_list_of_versions_is_cut_down_to_the_common_ones() -> None:
    async with deployment_speaking(OLD, NEW) as it:
        assert versions_in(await it.ask(discover((1, 0), (1, 1)))) == [(1, 1)]
        assert versions_in(await it.ask(discover((1, 2), (1, 2), (9, 9), (-1, 0)))) == [(1, 2)]
        assert versions_in(await it.ask(discover((3, 0)))) == []


@in_virtual_time
async def test_only_backends_that_are_available_now_count() -> None:
    async with deployment_speaking(OLD, NEW) as it:
        for _ in range(3):
            it.backends[0].health.checked(Verdict.FAILS)
        assert versions_in(await it.ask(discover())) == sorted(NEW, reverse=True)


@in_virtual_time
async def test_no_version_is_answered_while_all_backends_are_down() -> None:
    """The client, vCenter, takes the answer for a sign of life."""
    async with deployment_speaking(OLD, NEW) as it:
        for backend, key_manager in zip(it.backends, it.key_managers, strict=True):
            key_manager.refuse()
            for _ in range(3):
                backend.health.checked(Verdict.FAILS)
        assert refusal(await it.ask(discover()))[0] is Refusal.NO_BACKEND


#: Questions with more than a list of versions: the gateway forwards them.
NOT_PLAIN = {
    "a credential": discover(header=(ttlv.structure(Tag.AUTHENTICATION),)),
    "an extension": discover(header=(ttlv.octets(0x540001, b"vendor"),)),
    "a correlation value": discover(header=(ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "x"),)),
    "an odd list": discover((1, 1), more=ttlv.integer(Tag.BATCH_COUNT, 1)),
    "half a version": discover(more=ttlv.structure(Tag.PROTOCOL_VERSION)),
    "a list that can't be read": discover(more=b"\xff" * 16),
    "a version that one does not speak": discover(version=(1, 4)),
    "a version without this operation": discover(version=(1, 0)),
    "no room for the answer": discover(header=(ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 100),)),
    "a batch": ask("", Operation.DISCOVER_VERSIONS, Operation.QUERY, numbered=True, version=(1, 1)),
    "another operation": ask("", Operation.QUERY, version=(1, 1)),
}


@in_virtual_time
@pytest.mark.parametrize("request_", NOT_PLAIN.values(), ids=NOT_PLAIN)
async def test_all_but_the_plain_question_is_forwarded(request_: Request) -> None:
    async with deployment_speaking(OLD, NEW) as it:
        for key_manager in it.key_managers:
            key_manager.behaviour = _finds_it_invalid
        assert (await it.ask(request_)).response is not None


def _finds_it_invalid(connection: Connection, request: Request) -> None:
    connection.say(compose.failure(request, ResultReason.INVALID_MESSAGE, "no"))


@in_virtual_time
async def test_a_backend_that_was_not_asked_yet_may_speak_any_version() -> None:
    async with deployment_speaking(NEW, None) as it:
        assert (await it.ask(discover())).response is not None


@in_virtual_time
async def test_the_plain_question_may_have_batch_options_and_a_time_stamp() -> None:
    header = (
        ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 8192),
        ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 2),
        ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=True),
        ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000),
    )
    async with deployment_speaking(NEW) as it:
        assert versions_in(await it.ask(discover(header=header)))
