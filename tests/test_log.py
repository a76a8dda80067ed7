"""The log: one line for each event, dropped rather than waited for, and nothing in it out of a payload."""

import ast
import io
import json
import os
import re
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from gateway import log
from gateway.errors import StreamClosedError
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request
from gateway.kmip.spec import CredentialType, Operation, Tag
from gateway.log import LossyFile, Throttle
from gateway.traffic import Traffic
from gateway.upstream.pool_observer import PoolObserver
from tests.kit.deployment import deployment
from tests.kit.fake_backends import Behaviour, Connection, answer_to, answers, in_virtual_time, never_answers


@pytest.fixture(autouse=True)
def _restored_configuration() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    log.set_level("info")


# Lines ---------------------------------------------------------------------------------------------------------------


def test_an_event_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "text")

    log.get("upstream").bind(backend="atlanta").warning("can't open a session", reason="connect")

    (line,) = capsys.readouterr().err.splitlines()
    assert "can't open a session" in line
    assert "warning" in line
    assert "backend=atlanta" in line
    assert "reason=connect" in line
    assert "component=upstream" in line


def test_an_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")

    log.get("upstream").warning("can't open a session", reason="connect", detail="line one\nline two")

    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "can't open a session",
        "level": "warning",
        "component": "upstream",
        "reason": "connect",
        "detail": "line one\nline two",
    }


EVIL = "nope\n2026-01-01T00:00:00Z [info] key manager reached again\x1b[2J\x07\x9b\u202e" + "A" * 100_000


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_peers_text_cannot_forge_a_line_or_command_a_terminal(capsys: pytest.CaptureFixture[str], form: str) -> None:
    log.configure("info", form)

    log.get("upstream").warning("can't open a session", detail=EVIL, others=[EVIL, EVIL], bare="\x1b[2J")
    log.get("upstream").warning(EVIL)
    log.get("upstream").error("lost", exc_info=ValueError(EVIL))

    said = capsys.readouterr().err
    assert len(said) < 40_000
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)
    first = said.splitlines()[0]
    assert "AAAA" in first
    assert not any(line.startswith("2026-01-01") for line in said.splitlines())


def test_a_quoted_text_is_one_short_line() -> None:
    assert log.quoted("The key is destroyed; ä") == "The key is destroyed; ä"
    assert log.quoted("a\nb\x1b[2J\0") == "a\\nb\\x1b[2J\\x00"
    assert log.quoted("A" * 200) == "A" * 200
    assert log.quoted("A" * 201) == "A" * 200 + "..."
    assert log.quoted(EVIL).isprintable()
    assert len(log.quoted("\0" * (1 << 20))) == 203


def test_a_list_of_names_stays_readable_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    log.get("upstream").info("addresses changed", addresses=["192.0.2.1", "192.0.2.2"], number=2, none=None)

    event = json.loads(capsys.readouterr().err)
    assert (event["addresses"], event["number"], event["none"]) == (["192.0.2.1", "192.0.2.2"], 2, None)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_logged_without_values_of_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    log.configure("info", form)

    def breaks(frame: bytes) -> None:
        raise ValueError(f"{len(frame)} bytes too many")

    try:
        breaks("terces-pot"[::-1].encode())  # the line itself is written
    except ValueError as error:
        log.get("front").error("client lost", exc_info=error)

    written = capsys.readouterr().err
    assert "in breaks" in written
    assert "10 bytes too many" in written
    assert "top-secret" not in written


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(
    capsys: pytest.CaptureFixture[str], level: str, expected: list[str]
) -> None:
    log.configure(level, "json")
    logger = log.get("test")

    for write in (logger.debug, logger.info, logger.warning, logger.error):
        write("happened")

    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == expected


def test_a_repeated_line_is_logged_once_a_second_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said = LogCapture()
    logger = structlog.wrap_logger(None, processors=[said], wrapper_class=structlog.make_filtering_bound_logger(0))
    throttle = Throttle()

    for step in range(31):
        now = step / 10
        throttle.warn(logger, "overloaded", "request refused", reason="overloaded")
        if step % 15 == 0:
            throttle.warn(logger, "deadline", "request refused", reason="deadline")

    assert [(entry["reason"], entry.get("left_out")) for entry in said.entries] == [
        ("overloaded", None),
        ("deadline", None),
        ("overloaded", 9),
        ("deadline", None),
        ("overloaded", 9),
        ("overloaded", 9),
        ("deadline", None),
    ]


def test_many_keys_share_the_most_lines_of_a_second_and_all_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said = LogCapture()
    logger = structlog.wrap_logger(None, processors=[said], wrapper_class=structlog.make_filtering_bound_logger(0))
    throttle = Throttle(most=3)

    for step in range(40):
        now = step / 10
        for number in range(10):
            throttle.warn(logger, str(number), "request refused", number=number, at=int(now))

    assert [(entry["number"], entry["at"]) for entry in said.entries] == [
        *((0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2)),
        (9, 3),
    ]
    assert said.entries[-1]["left_out"] == 30
    now = 4.0
    throttle.warn(logger, "0", "request refused", number=0)
    assert said.entries[-1]["left_out"] == 39


# Debugging for a while -----------------------------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Yield a list with the time, which the test changes; no debugging is left over."""
    times = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    monkeypatch.setattr(log, "_debug_throttle", Throttle(0.0, most=100))
    yield times
    log.end_debug()


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_about_some_traffic_are_logged_for_a_while(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    log.configure("warning", "json")
    sessions = log.get("upstream").bind(backend="kms/1", credential="arrays")
    other = log.get("upstream").bind(backend="kms/1", credential="tapes")
    logger = log.get("front")

    def say() -> list[object]:
        for number, each in enumerate((sessions, other)):
            each.debug("session opened", number=number)
            each.info("key manager reached again", number=number)
        logger.debug("request answered", number=2, identity="arrays", tried=["kms/2", "kms/1"], peer="10.1.2.3:4")
        logger.info("listening", number=3)
        logger.warning("handshake failed", number=4)
        return [event["number"] for event in events(capsys)]

    assert (say(), log.shows_debug()) == ([4], False)
    log.begin_debug(Traffic(identity="arrays"), 60.0)
    assert (say(), log.shows_debug()) == ([0, 0, 2, 4], True)
    now[0] += 59.0
    assert say() == [0, 0, 2, 4]
    assert log.state() == {"level": "warning", "debug": {"seconds": 1.0, "identity": "arrays"}}
    now[0] += 1.0
    assert (say(), log.shows_debug()) == ([4], False)
    assert log.state() == {"level": "warning", "debug": None}
    log.begin_debug(Traffic(backend="kms"), 60.0)
    assert say() == [0, 0, 1, 1, 2, 4]
    log.begin_debug(Traffic.take({"address": "10.1.0.0/16"}), 60.0)
    assert say() == [2, 4]
    log.begin_debug(Traffic(), 60.0)
    assert say() == [0, 0, 1, 1, 2, 3, 4]
    log.end_debug()
    assert say() == [4]


@pytest.mark.usefixtures("now")
def test_another_process_adopts_level_and_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("error", "json")
    log.begin_debug(Traffic.take({"identity": "arrays", "address": "10.1.0.0/16"}), 60.0)
    state = json.loads(json.dumps(log.state()))
    log.end_debug()
    log.set_level("info")

    log.adopt(state)
    assert log.state() == state
    log.get("front").warning("handshake failed", peer="10.1.2.3:4")
    log.get("front").debug("client connected", identity="arrays", peer="10.1.2.3:4")
    assert [event["event"] for event in events(capsys)] == ["client connected"]
    log.adopt({"level": "warning", "debug": None})
    assert (log.state()["level"], log.shows_debug()) == ("warning", False)


def test_debug_lines_are_bounded_and_counted(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    log.configure("debug", "json")
    for _ in range(3):
        for number in range(250):
            log.get("front").debug("request answered", number=number)
        log.get("front").info("listening")
        now[0] += 1.0

    found = events(capsys)
    assert [event["event"] for event in found].count("listening") == 3
    debug = [event for event in found if event["level"] == "debug"]
    assert len(debug) == 300
    assert [event.get("left_out") for event in debug[::100]] == [None, 150, 150]


# Documentation -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
INTERNAL_ERROR = "internal error: .*; report this bug"  # documented together
TREES = [ast.parse(path.read_text()) for path in sorted((ROOT / "gateway").rglob("*.py"))]


def documented_lines() -> list[str]:
    """Return the lines of the table in docs/operations.md."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Log lines\n")[2]
    return [
        line for row in re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE) for line in row.strip("`").split("`, `")
    ]


@pytest.mark.parametrize("line", documented_lines())
def test_a_documented_line_is_logged(line: str) -> None:
    texts = [node.value for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Constant)]

    assert any(isinstance(text, str) and text.startswith(line) for text in texts)


def test_warnings_and_errors_are_documented() -> None:
    events = [
        str(node.args[-1].value)
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
        if node.func.attr in {"warning", "error", "warn"} and isinstance(node.args[-1], ast.Constant)
    ]
    lines = tuple(documented_lines())

    assert len(events) > 20
    assert [event for event in events if not event.startswith(lines) and not re.fullmatch(INTERNAL_ERROR, event)] == []


def test_the_last_lines_are_values_of_json() -> None:
    log.configure("info", "text")
    log.get("test").info("odd", path=Path("/a"), number=float("inf"), many=(Path("/b"), {1}), whole=7, none=None)
    (line,) = log.take_unreported()[-1:]
    assert log.recent()[0] == line
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert (line["path"], line["number"], line["whole"], line["none"]) == ("/a", "inf", 7, None)
    assert log.take_unreported() == []


# Files that cannot be written -----------------------------------------------------------------------------------------


def test_a_line_is_written_and_flushed() -> None:
    file = io.StringIO()
    lossy = LossyFile(file)

    lossy.write("a line\n")
    lossy.flush()

    assert file.getvalue() == "a line\n"
    assert lossy.dropped == 0


def test_a_full_disk_drops_lines_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123 - a device, with the buffering that stderr has
        monkeypatch.setattr(sys, "stderr", full)
        lossy = log.configure("info", "text")
        logger = log.get("test")

        for number in range(1000):
            logger.info("happened", number=number)

        assert lossy.dropped >= 1000
        _empty(full)


def test_a_full_disk_at_the_flush_drops_a_line() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - as above, with a buffer
        lossy = LossyFile(full)

        lossy.write("a line\n")
        lossy.flush()

        assert lossy.dropped == 1
        _empty(full)


def test_a_closed_pipe_drops_lines_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        lossy = log.configure("info", "json")
        log.get("test").info("read")
        os.close(reading)

        log.get("test").info("not read")

        assert lossy.dropped >= 1
        _empty(pipe)


@pytest.fixture(params=["pipe", "socket"])
def unread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, log.LossyFile]]:
    """The reading end of a pipe or socket, unread so far, and the log that is written to the other end."""
    if request.param == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = (sock.detach() for sock in socket.socketpair())
    with os.fdopen(writing, "w", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        yield reading, log.configure("info", "json")
    os.close(reading)


def read_all(reading: int) -> list[str]:
    """Return the lines that can be read at once."""
    said = b""
    while select.select([reading], [], [], 0)[0]:
        said += os.read(reading, 65536)
    return said.decode().splitlines()


def test_an_unread_log_drops_lines_and_then_says_how_many(
    unread: tuple[int, log.LossyFile],
) -> None:
    reader, lossy = unread
    logger = log.get("test")
    for number in range(10_000):
        logger.info("happened", number=number, padding="x" * 100)
    events = [json.loads(line) for line in read_all(reader)]
    logger.info("again")
    logger.info("and again")

    assert [event["number"] for event in events] == list(range(len(events)))
    assert 100 < len(events) < 10_000
    assert lossy.dropped == 10_000 - len(events)
    notice, *after = [json.loads(line) for line in read_all(reader)]
    assert (notice["event"], notice["number"]) == (
        "log messages dropped: standard error was not being read, or its disk was full",
        lossy.dropped,
    )
    assert [event["event"] for event in after] == ["again", "and again"]


def test_a_file_on_a_full_disk_says_how_many_lines_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("a", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        lossy = log.configure("info", "json")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as a disk of 10,000 bytes
        try:
            for number in range(1000):
                log.get("test").info("happened", number=number)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.get("test").info("again")

    *events, cut, notice, again = path.read_text().splitlines()
    assert [json.loads(event)["number"] for event in events] == list(range(len(events)))
    assert not cut.endswith("}")
    assert json.loads(notice)["number"] == lossy.dropped == 1000 - len(events)
    assert json.loads(again)["event"] == "again"


def test_a_terminal_that_is_not_read_drops_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.openpty()
    with os.fdopen(writing, "w", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        lossy = log.configure("info", "json")
        for number in range(2000):
            log.get("test").info("happened", number=number)
        assert lossy.dropped > 0
        read_all(reading)
        log.get("test").info("again")
        assert any("standard error was not being read" in line for line in read_all(reading))
    os.close(reading)


def test_dropped_messages_are_counted_for_the_process(unread: tuple[int, log.LossyFile]) -> None:
    _reader, lossy = unread
    for number in range(10_000):
        log.get("test").info("happened", number=number)

    assert log.messages_dropped() == lossy.dropped > 0


def test_a_long_message_is_written_whole_if_there_is_room(
    unread: tuple[int, log.LossyFile],
) -> None:
    reader, _lossy = unread
    details = ["".join(chr(number) for number in range(begin, begin + 0x200)) for begin in range(0x100, 0x2000, 0x200)]

    log.get("test").info("happened", details=details)

    (line,) = read_all(reader)
    assert json.loads(line)["details"] == details


def test_a_message_without_room_is_cut_and_the_next_begins_a_line(
    unread: tuple[int, log.LossyFile],
) -> None:
    reader, lossy = unread
    logger = log.get("test")

    logger.info("too long", details=["x" * 2000] * 5000)
    assert lossy.dropped == 1
    begun = read_all(reader)
    logger.info("short")

    assert begun[0].startswith("{")
    assert not begun[0].endswith("}")
    rest, notice, short = read_all(reader)
    assert (rest, json.loads(notice)["number"], json.loads(short)["event"]) == ("", 1, "short")


@pytest.mark.parametrize("form", ["text", "json"])
def test_without_standard_error_lines_are_dropped(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    lossy = log.configure("info", form)

    log.get("test").info("happened")

    assert lossy.dropped == 1


def _empty(file: io.TextIOWrapper) -> None:
    """Point the file at /dev/null, so that closing it can write the rest of its buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


# Secrets -------------------------------------------------------------------------------------------------------------

KEY = bytes.fromhex("8f1ce2940b77d1633a5ea9c204f86bd15e0091b7c3fa482d9960aa17e4d35cb8")
NAME = "payroll-master-key-2026"
PASSWORD = "correct horse battery staple"


def register() -> Request:
    """Return a Register of a key, with a name as its identifier and a password in its header."""
    credential = ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.USERNAME_AND_PASSWORD),
        ttlv.structure(Tag.CREDENTIAL_VALUE, ttlv.text(Tag.USERNAME, "alice"), ttlv.text(Tag.PASSWORD, PASSWORD)),
    )
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, NAME) + ttlv.octets(Tag.KEY_MATERIAL, KEY)
    asks = [compose.Ask(Operation.REGISTER, payload, KEY[:16]), compose.Ask(Operation.GET, payload, KEY[16:])]
    return decode_request(compose.encode_request((1, 4), asks, header=[ttlv.structure(Tag.AUTHENTICATION, credential)]))


def traces_of(secret: bytes) -> Iterator[str]:
    """Yield every four bytes of a secret as numbers, and every eight as text: the ways in which bytes get into logs."""
    for place in range(len(secret) - 3):
        part = secret[place : place + 4]
        yield from (part.hex(), part.hex(" "), part.hex(":"), str(int.from_bytes(part, "big")))
    for place in range(len(secret) - 7):
        part = secret[place : place + 8]
        yield from (repr(part)[2:-1], part.decode("latin-1"))


TRACES = {trace.lower() for secret in (KEY, NAME.encode(), PASSWORD.encode()) for trace in traces_of(secret)}


def echoes(connection: Connection, request: Request) -> None:
    connection.say(request.frame)


def spills(connection: Connection, _request: Request) -> None:
    connection.say(b"HTTP/1.1 500 " + KEY + NAME.encode() + PASSWORD.encode())


def spills_at_once(connection: Connection, _request: Request) -> None:
    connection.say(KEY)


def answers_half(connection: Connection, request: Request) -> None:
    connection.say(answer_to(request)[:-8], b"")


def answers_broken(connection: Connection, request: Request) -> None:
    """Answer with a frame of the right length in which eight bytes stand at the wrong place."""
    answer = answer_to(request)
    connection.say(answer[:64] + answer[72:] + answer[64:72])


def answers_another(connection: Connection, request: Request) -> None:
    result = compose.Result(0, Operation.QUERY, KEY[:16], payload=ttlv.octets(Tag.KEY_MATERIAL, KEY))
    connection.say(compose.encode_response(request.version, [result]))


def says_more(connection: Connection, request: Request) -> None:
    connection.answer(request, answer_to(request))


def breaks(_connection: Connection, _request: Request) -> None:
    raise StreamClosedError("connection broken: EPIPE")


FAILURES: dict[str, Behaviour] = {
    behaviour.__name__: behaviour
    for behaviour in (
        answers,
        echoes,
        spills,
        spills_at_once,
        answers_half,
        answers_broken,
        answers_another,
        says_more,
        breaks,
        never_answers,
    )
}


@pytest.mark.parametrize("how", [*FAILURES, "refuses", "is unreachable"])
@in_virtual_time
async def test_no_secret_gets_into_the_log_if_a_request_fails(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("debug", "json")
    async with deployment("atlanta") as it:
        atlanta, pool = it.key_managers[0], it.backends[0].pools["red"]
        pool.observer = PoolObserver("atlanta", "red", it.metrics, log.get("upstream"))
        if how == "refuses":
            atlanta.refuse()
        atlanta.is_reachable = how != "is unreachable"
        atlanta.behaviour = FAILURES.get(how, answers)

        for _ in range(5):
            answer = await it.ask(register())
            log.get("front").warning("request refused", detail=answer.detail, answer=repr(answer.response))
        log.get("test").debug("state", all=repr([register(), it.backends, pool, *pool._busy, *pool._idle]))
    written = capsys.readouterr().err.lower()

    assert len(written.splitlines()) >= 5
    assert {trace for trace in TRACES if trace in written} == set()
