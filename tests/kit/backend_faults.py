"""Faults of key managers, each with the result that a read and a change should see."""

from collections.abc import Callable
from typing import NamedTuple

import trio

from gateway.errors import StreamClosedError
from gateway.kmip import compose
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from tests.kit.fake_backends import (
    LIMITS,
    Connection,
    FakeKeyManager,
    answer_to,
    ask,
    breaks_while_it_is_asked,
    never_answers,
)

# The faults -----------------------------------------------------------------------------------------------------------


def _hangs_up_unread(connection: Connection, _request: Request) -> None:
    connection.hang_up()


def _hangs_up_after_executing(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.hang_up()


def resets_after_executing(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(StreamClosedError("connection lost: ECONNRESET"))


def _takes_nothing(_connection: Connection, _request: Request) -> None:
    raise StreamClosedError("connection broken: EPIPE", nothing_sent=True)


def _cuts_the_answer(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(request)[:40], b"")


def _says_garbage(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(b"\xff" * 64)


def _says_a_broken_message(connection: Connection, request: Request) -> None:
    connection.execute(request)
    whole = answer_to(request)
    connection.say(whole[:8] + bytes(len(whole) - 8))


def _answers_another(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(ask("another", Operation.QUERY)))


def _is_slow(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.say(answer_to(request), at=trio.current_time() + 3.0)


def _says_more(connection: Connection, request: Request) -> None:
    connection.execute(request)
    connection.answer(request, b"\x42\x00\x7b\x01")


def _says_too_much(connection: Connection, request: Request) -> None:
    connection.execute(request)
    head = b"\x42\x00\x7b\x01" + (LIMITS.max_response_size * 2).to_bytes(4, "big")
    connection.say(head + bytes(1000))


def _is_not_the_master(connection: Connection, request: Request) -> None:
    results = [
        compose.Result(
            ResultStatus.OPERATION_FAILED,
            item.operation,
            item.unique_batch_item_id,
            ResultReason.PERMISSION_DENIED,
            "not master",
        )
        for item in request.items
    ]
    connection.say(compose.encode_response(request.version, results, now=0))


def _behaves(behaviour: Callable[[Connection, Request], None]) -> Callable[[FakeKeyManager], None]:
    def switch(key_manager: FakeKeyManager) -> None:
        key_manager.behaviour = behaviour

    return switch


def _refuses_the_credential(key_manager: FakeKeyManager) -> None:
    key_manager.refused.add("red")


def _is_unreachable(key_manager: FakeKeyManager) -> None:
    key_manager.is_reachable = False


class Cell(NamedTuple):
    """The client's result, the number of executions, and the seconds that this may take."""

    result: str
    executed: int
    seconds: float = 0.5


OK, UNKNOWN, TOO_LARGE, PASSED_ON = "answered", "unknown", "response_too_large", "failed by the key manager"


class Row(NamedTuple):
    """A fault: the function that switches it on, the cells of a read and a change, and the sign for health."""

    switch: Callable[[FakeKeyManager], None]
    read: Cell
    mutation: Cell
    sign: str


FAULTS = {
    "refuse": Row(FakeKeyManager.refuse, Cell(OK, 1), Cell(OK, 1), "hard"),
    "unreachable": Row(_is_unreachable, Cell(OK, 1, 3.5), Cell(OK, 1, 3.5), "hard"),
    "refuse credential": Row(_refuses_the_credential, Cell(OK, 1), Cell(OK, 1), "hard"),
    "takes nothing": Row(_behaves(_takes_nothing), Cell(OK, 1), Cell(OK, 1), "none"),
    "breaks while asked": Row(_behaves(breaks_while_it_is_asked), Cell(OK, 1), Cell(UNKNOWN, 0), "soft"),
    "reset before reading": Row(_behaves(_hangs_up_unread), Cell(OK, 1), Cell(UNKNOWN, 0), "soft"),
    "close after executing": Row(_behaves(_hangs_up_after_executing), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "reset after executing": Row(_behaves(resets_after_executing), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "cut": Row(_behaves(_cuts_the_answer), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "garbage": Row(_behaves(_says_garbage), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "broken message": Row(_behaves(_says_a_broken_message), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "answers another": Row(_behaves(_answers_another), Cell(OK, 2), Cell(UNKNOWN, 1), "soft"),
    "deaf": Row(_behaves(never_answers), Cell(OK, 2, 5.5), Cell(UNKNOWN, 1, 30.5), "soft"),
    "slow": Row(_behaves(_is_slow), Cell(OK, 1, 3.5), Cell(OK, 1, 3.5), "none"),
    "extra": Row(_behaves(_says_more), Cell(OK, 1), Cell(OK, 1), "none"),
    "too large": Row(_behaves(_says_too_much), Cell(TOO_LARGE, 1), Cell(TOO_LARGE, 1), "none"),
    "standby": Row(_behaves(_is_not_the_master), Cell(PASSED_ON, 0), Cell(PASSED_ON, 0), "none"),
}

REQUESTS = {
    "read": ask("key", Operation.GET),
    "mutation": ask("key", Operation.CREATE),
    "consuming": ask("key", Operation.ENCRYPT),
    "batch of both": ask("key", Operation.GET, Operation.CREATE, numbered=True),
    "batch of reads": ask("key", Operation.GET, Operation.LOCATE, numbered=True),
    "unknown operation": ask("key", 0x80000001),
}
READS = {"read", "batch of reads"}
