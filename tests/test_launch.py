"""The number of processes. That they work is tested in tests/e2e/test_tls_workers.py."""

import os

import pytest

from gateway.launch import number_of_workers


@pytest.mark.parametrize(("processors", "workers"), [(1, 0), (2, 1), (16, 15)])
def test_auto_is_one_worker_for_each_processor_but_one(
    monkeypatch: pytest.MonkeyPatch, processors: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(processors)))
    assert number_of_workers("auto") == workers


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_number_is_taken_as_it_is(number: int) -> None:
    assert number_of_workers(number) == number
