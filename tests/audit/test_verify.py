"""Verify: any line that is dropped, swapped or changed is found."""

import json
import random

import pytest

from gateway.audit.chain import BEGINNING, Chain
from gateway.audit.verify import Verifier

KEY = b"k" * 32


def trail(count: int = 8, key: bytes | None = None) -> list[bytes]:
    """Return the lines of a gateway that was stopped."""
    chain = Chain(key)
    first = chain.seal(f'"time":"2026-01-01T00:00:00.000000Z","event":"start","previous":"{BEGINNING}"')
    lines = [chain.seal(f'"event":"request","client":"192.0.2.{number}:5000"') for number in range(count)]
    return [first, *lines, chain.seal('"event":"stop"')]


def fault(lines: list[bytes], key: bytes | None = None, *, ended: bool = True) -> str:
    verifier = Verifier(key)
    verifier.read("audit.jsonl", lines)
    return verifier.finish(ended=ended)


@pytest.mark.parametrize("key", [None, KEY])
def test_whole_lines_are_good(key: bytes | None) -> None:
    verifier = Verifier(key)
    verifier.read("audit.jsonl", trail(key=key))

    assert verifier.finish(ended=True) == ""
    assert verifier.notices == []
    assert verifier.summary().startswith("OK: 10 lines in 1 file(s), from line 1 to line 10")
    assert "8 request" in verifier.summary()


@pytest.mark.parametrize("position", range(10))
def test_any_dropped_line_is_found(position: int) -> None:
    lines = trail()
    del lines[position]
    assert fault(lines)


@pytest.mark.parametrize("position", range(9))
def test_two_swapped_lines_are_found(position: int) -> None:
    lines = trail()
    lines[position], lines[position + 1] = lines[position + 1], lines[position]
    assert fault(lines)


def test_any_repeated_line_is_found() -> None:
    for position in range(10):
        lines = trail()
        lines.insert(position, lines[position])
        assert fault(lines)


def test_any_changed_byte_is_found() -> None:
    rng = random.Random(7)
    for _ in range(500):
        lines = trail()
        position = rng.randrange(len(lines))
        line = bytearray(lines[position])
        line[rng.randrange(len(line) - 1)] ^= 1 << rng.randrange(8)
        lines[position] = bytes(line)
        assert fault(lines), bytes(line)


def test_the_fault_names_the_first_broken_line() -> None:
    lines = trail()
    lines[4] = lines[4].replace(b"192.0.2.3", b"192.0.2.9")
    assert fault(lines).startswith("audit.jsonl:5: the hash of line 5 is wrong")
    del lines[4]
    assert fault(lines) == "audit.jsonl:5: line 6 follows line 4: lines are missing or moved"


def test_a_rewritten_chain_is_found_with_a_key_only() -> None:
    forged = [line for line in trail(key=b"x" * 32) if b"192.0.2.3" not in line]
    chain = Chain(b"x" * 32)
    forged = [chain.seal(f'"event":"start","previous":"{BEGINNING}"'), chain.seal('"event":"stop"')]

    assert "hash" in fault(forged, KEY)
    plain = Chain()
    assert fault([plain.seal(f'"event":"start","previous":"{BEGINNING}"'), plain.seal('"event":"stop"')]) == ""
    assert "keyed" in fault(trail(key=KEY))
    assert "no keyed hash" in fault(trail(), KEY)


def test_an_end_is_only_required_if_asked_for() -> None:
    lines = trail()[:-1]
    assert "stopped gateway" in fault(lines)
    assert fault(lines, ended=False) == ""


def test_a_part_of_a_trail_needs_to_be_asked_for() -> None:
    lines = trail()[3:]
    assert "earlier lines are missing" in fault(lines)
    verifier = Verifier(None, from_middle=True)
    verifier.read("audit.jsonl", lines)
    assert verifier.finish(ended=True) == ""
    verifier = Verifier(None, from_middle=True)
    verifier.read("audit.jsonl", [lines[0], lines[2]])
    assert verifier.finish()


def test_no_lines_and_other_files_are_faults() -> None:
    assert fault([]) == "there are no lines"
    assert "no line of an audit trail" in fault([b"hello\n"])
    assert "no line of an audit trail" in fault([b"hello\n", *trail()])
    assert "no line of an audit trail" in fault([*trail(), b"hello\n", b"again\n"])
    assert "no line of an audit trail" in fault([*trail()[:3], b"\n", *trail()[3:]])


def test_the_last_line_may_be_incomplete_while_it_is_written() -> None:
    lines = trail()
    lines[-1] = lines[-1][:20]
    verifier = Verifier(None)
    verifier.read("audit.jsonl", lines)

    assert verifier.finish() == ""
    assert "incomplete" in verifier.notices[0]


def test_another_chain_may_begin_only_with_a_file() -> None:
    verifier = Verifier(None)
    verifier.read("one", trail())
    verifier.read("two", trail())
    assert verifier.finish(ended=True) == ""
    assert "another chain begins" in verifier.notices[0]
    assert fault([*trail(), *trail()])


def test_a_line_that_is_no_json_is_a_fault() -> None:
    chain = Chain()
    line = chain.seal('"event":')
    assert fault([line])
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(line)
