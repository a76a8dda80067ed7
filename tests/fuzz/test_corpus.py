"""Every input of the corpus through every target: no input may raise."""

import time
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.glob("*/*"))


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} >= set(TARGETS)
    assert all(any(path.iterdir()) for path in CORPUS.iterdir())


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in INPUTS) < 512 * 1024


@pytest.mark.parametrize("target", TARGETS)
def test_no_kept_input_makes_a_target_raise(target: str) -> None:
    for path in INPUTS:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path} makes {target} raise") from error


@pytest.mark.parametrize("target", TARGETS)
def test_every_prefix_of_a_corpus_input_raises_nothing(target: str) -> None:
    """A peer may stop at any byte. The time is bounded, not the number of inputs."""
    until = time.monotonic() + 2
    for path in INPUTS:
        data = path.read_bytes()
        for end in range(0, len(data), 7):
            TARGETS[target](data[:end])
        if time.monotonic() > until:
            break
