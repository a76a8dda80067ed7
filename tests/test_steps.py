"""Long work in steps: other tasks run between two steps, and JSON is the same as in one go."""

import json
from typing import Any

import pytest
import trio

from gateway import steps


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "text",
        {"a": {"b": {"c": {"d": [1, {"e": []}]}}}, "f": [[], [[]], {}, None, True, 1.5, "\u00e9"]},
        [{"a": 1}, {"b": [2, 3]}],
    ],
)
async def test_a_value_is_encoded_as_in_one_go(value: Any) -> None:
    assert (await steps.encoded(value)).decode() == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(("step", "turns"), [(0.0, 10), (60.0, 0)])
async def test_other_tasks_have_a_turn_after_each_step(
    step: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEP", step)
    seen: list[int] = []

    async def other() -> None:
        while True:
            seen.append(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        work = steps.Steps()
        for _ in range(10):
            await work.turn()
        during = len(seen)
        nursery.cancel_scope.cancel()
    assert during == pytest.approx(turns, abs=1 if turns else 0)
