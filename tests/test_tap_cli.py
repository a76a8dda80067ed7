"""``kmip-gateway tap``: its lines for people, and its end."""

from typing import Any

import pytest

from gateway.tap_cli import Printer, line

FOUND = {
    "time": "2030-01-02T03:04:05.678Z",
    "identity": "arrays",
    "client": "10.1.2.3:4567",
    "items": [{"operation": "Get", "ids": ["key-1"], "status": "Success"}],
    "result": "success",
    "backend": "kms-1",
    "tries": 1,
    "queue": 0.0001,
    "exchange": 0.002,
    "seconds": 0.0022,
}
ABOUT = "03:04:05.678 arrays 10.1.2.3:4567"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "Get key-1 kms-1 success: 1 try, 0.1 + 2.0 = 2.2 ms"),
        (
            {"tries": 2, "items": [{"operation": "Create", "answer_ids": ["a", "b"]}, {"operation": "Get"}]},
            "Create+1 a+1 kms-1 success: 2 tries, 0.1 + 2.0 = 2.2 ms",
        ),
        (
            {"result": "operation_failed", "items": [{"operation": "Get", "reason": "ItemNotFound"}]},
            "Get - kms-1 failed ItemNotFound: 1 try, 0.1 + 2.0 = 2.2 ms",
        ),
        (
            {"result": "gateway_error", "refusal": "overloaded", "backend": None, "items": [], "tries": 0},
            "Invalid - - gateway_error overloaded: 0 tries, 0.1 + 2.0 = 2.2 ms",
        ),
    ],
)
def test_lines_for_people(changes: dict[str, Any], shown: str) -> None:
    assert line({**FOUND, **changes}) == f"{ABOUT} {shown}"


def test_lost_requests_are_said_and_do_not_count() -> None:
    said: list[str] = []
    printer = Printer(2, as_json=False, write=said.append)
    assert [printer.take(each) for each in (FOUND, {"lost": 7}, FOUND)] == [True, True, False]
    assert said[2] == "7 requests were not shown: this command was not read fast enough"
