"""The recorder: one line of the audit trail for each request of a connection, however it ends."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from gateway.audit.trail import Trail
from gateway.config import AuditConfig
from gateway.dispatcher import Answer, Dispatcher, Observer, refusal
from gateway.front.recorder import RequestRecorder
from gateway.identity import Identity, Principal
from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask, Result
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.policy import Effect, Refusal, effect_of

PRINCIPAL = Principal(Identity("app", shared=False), "CN=CA", "CN=alice", 0.0, float("inf"))
CERTIFICATE = b"a certificate"


class Backend:
    """A backend by its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class FakeDispatcher(Dispatcher):
    """Asks its observer as the dispatcher does, and answers with success, ``answer``, or a fault."""

    def __init__(self) -> None:
        self.forwarded = 0
        self.tried = [Backend("kms-1")]
        self.answer: Answer | None = None
        self.fault: BaseException | None = None

    async def dispatch(self, request: Request, *_more: Any, **_by_name: Any) -> Answer:
        observer: Observer = _more[-1]
        job: Any = SimpleNamespace(effect=effect_of(request), request=request, tries=len(self.tried), tried=self.tried)
        if observer.refuses and (refused := await observer.before_forwarding(job)) is not None:
            return refused
        self.forwarded += 1
        observer.after_forwarding(job)
        if self.fault is not None:
            raise self.fault
        if self.answer is not None:
            return self.answer
        payload = b"" if request.items[0].operation == Operation.CREATE else ttlv.text(Tag.UNIQUE_IDENTIFIER, "key-1")
        results = [Result(ResultStatus.SUCCESS, item.operation, payload=payload) for item in request.items]
        frame = compose.encode_response(request.version, results)
        backend: Any = self.tried[-1]
        return Answer.of(decode_response(frame), backend)


class Recorded:
    """A trail, a dispatcher, and a recorder between them."""

    def __init__(self, path: Path, **settings: Any) -> None:
        config = AuditConfig.model_construct(**{**AuditConfig().__dict__, "to": "file", "file": path, **settings})
        self.path = path
        self.trail = Trail(config, None, structlog.wrap_logger(None, processors=[LogCapture()]))
        self.trail.open()
        self.dispatcher = FakeDispatcher()
        self.recorder = RequestRecorder(
            self.trail, self.dispatcher, listener="kmip", client="192.0.2.1:5", certificate=CERTIFICATE
        )

    async def ask(self, request: Request) -> Answer:
        return await self.recorder.dispatch(request, PRINCIPAL, lambda: False, None, now=trio.current_time())

    async def lines(self, event: str = "request") -> list[dict[str, Any]]:
        """Return the lines of an event; the trail is closed."""
        await self.trail.close()
        found = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        return [line for line in found if line["event"] == event]


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Recorded]:
    it = Recorded(tmp_path / "audit.jsonl")
    yield it
    await it.trail.close()


def request(operation: int = Operation.GET, uid: str = "key-1", *header: bytes) -> Request:
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, uid)
    return decode_request(compose.encode_request((1, 4), [Ask(operation, payload)], header=header))


async def test_a_request_has_all_its_facts(recorded: Recorded) -> None:
    await recorded.ask(request(Operation.GET, "key-1", ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "job-7")))

    (line,) = await recorded.lines()
    duration = line.pop("duration")
    assert 0 <= duration < 1
    assert {key: value for key, value in line.items() if key not in {"seq", "time", "hash"}} == {
        "event": "request",
        "listener": "kmip",
        "client": "192.0.2.1:5",
        "certificate": hashlib.sha256(CERTIFICATE).hexdigest(),
        "identity": "app",
        "issuer": "CN=CA",
        "subject": "CN=alice",
        "version": "1.4",
        "correlation": "job-7",
        "items": [{"operation": "Get", "ids": ["key-1"], "status": "Success"}],
        "policy": "allowed",
        "result": "success",
        "backend": "kms-1",
        "tries": 1,
    }


async def test_the_fast_path_writes_the_same_line(recorded: Recorded) -> None:
    for uid in ("key-1", 'a"b', "policy", "key-1"):
        await recorded.ask(request(uid=uid))
        answer = await recorded.dispatcher.dispatch(request(uid=uid), recorded.recorder)
        recorded.trail.add(recorded.recorder._line(request(uid=uid), answer, 0.0))

    lines = await recorded.lines()
    for line in lines:
        for varying in ("seq", "time", "hash", "duration"):
            del line[varying]
    assert lines[::2] == lines[1::2]
    assert [line["items"][0]["ids"] for line in lines[::2]] == [["key-1"], ['a"b'], ["policy"], ["key-1"]]


async def test_a_refusal_has_its_reason_and_a_policy(recorded: Recorded) -> None:
    asked = request(Operation.PUT)
    recorded.dispatcher.answer = refusal(Refusal.NOT_SUPPORTED, "no", asked)
    await recorded.ask(asked)
    recorded.dispatcher.answer = refusal(Refusal.NO_BACKEND, "no", asked)
    recorded.dispatcher.tried = [Backend("kms-1"), Backend("kms-2")]
    await recorded.ask(asked)

    first, second = await recorded.lines()
    assert (first["policy"], first["refusal"], first["result"]) == ("refused", "not_supported", "gateway_error")
    assert first["items"][0]["reason"] == "OperationNotSupported"
    assert (second["policy"], second["refusal"], second["backend"], second["tries"]) == (
        "allowed",
        "no_backend",
        "kms-2",
        2,
    )


async def test_a_request_that_is_cut_off_has_a_line(recorded: Recorded) -> None:
    recorded.dispatcher.fault = RuntimeError("a fault")
    with pytest.raises(RuntimeError):
        await recorded.ask(request(Operation.CREATE))

    (line,) = await recorded.lines()
    assert (line["result"], line["backend"]) == ("cut_off", "kms-1")


async def test_requests_that_the_conversation_refuses_have_lines(recorded: Recorded) -> None:
    recorded.recorder.refused(request(), None, Refusal.NOT_AUTHENTICATED)
    recorded.recorder.refused(None, None, Refusal.INVALID_MESSAGE)

    first, second = await recorded.lines()
    assert (first["identity"], first["items"][0]["reason"]) == (None, "AuthenticationNotSuccessful")
    assert (second["items"], second["refusal"]) == ([], "invalid_message")


async def test_reads_need_no_line_if_only_changes_do(tmp_path: Path) -> None:
    it = Recorded(tmp_path / "audit.jsonl", requests="changes")
    await it.ask(request(Operation.GET))
    await it.ask(request(Operation.DESTROY))
    it.dispatcher.answer = refusal(Refusal.NOT_SUPPORTED, "no", request())
    await it.ask(request(Operation.GET))

    assert [line["items"][0]["operation"] for line in await it.lines()] == ["Destroy", "Get"]


async def test_a_change_is_on_the_disk_before_it_is_forwarded(tmp_path: Path) -> None:
    it = Recorded(tmp_path / "audit.jsonl", on_failure="refuse")
    seen: list[bytes] = []

    class Looking(Backend):
        @property
        def name(self) -> str:  # read when the request has been forwarded
            seen.append(it.path.read_bytes())
            return "kms-1"

        @name.setter
        def name(self, _name: str) -> None: ...

    it.dispatcher.tried = [Looking("kms-1")]
    await it.ask(request(Operation.DESTROY))

    assert b'"event":"intent"' in seen[0]
    (intent,) = await it.lines("intent")
    (line,) = await it.lines()
    assert line["intent"] == intent["seq"]
    assert intent["items"] == [{"operation": "Destroy", "ids": ["key-1"]}]


async def test_without_a_trail_nothing_is_forwarded_if_it_must_be_written() -> None:
    it = Recorded(Path("/dev/full"), on_failure="refuse")
    for operation in (Operation.DESTROY, Operation.CREATE, Operation.GET):
        answer = await it.ask(request(operation))
        assert answer.refusal is Refusal.AUDIT_UNAVAILABLE

    assert it.dispatcher.forwarded == 0
    await it.trail.close()


async def test_without_a_trail_requests_are_served_if_it_may_fail() -> None:
    it = Recorded(Path("/dev/full"), on_failure="continue")
    with trio.fail_after(5):
        for operation in (Operation.DESTROY, Operation.GET):
            assert (await it.ask(request(operation))).refusal is None
            await trio.sleep(0.1)

    assert it.dispatcher.forwarded == 2
    await it.trail.close()


def test_the_reads_of_these_tests_are_reads() -> None:
    assert effect_of(request(Operation.GET)).is_read
    assert effect_of(request(Operation.DESTROY)) is Effect.MUTATE
