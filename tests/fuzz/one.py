"""Run a target under atheris: ``python -m tests.fuzz.one TARGET [libFuzzer's options and directories]``."""

import random
import struct
import sys

import atheris

with atheris.instrument_imports(include=["gateway.kmip", "gateway.policy", "gateway.upstream.marks", "gateway.front"]):
    from tests.fuzz.targets import TARGETS

_MESSAGES = {"request", "response", "marks"}


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate bytes, and usually correct the message's length: otherwise few inputs are read beyond their head."""
    mutated = bytearray(atheris.Mutate(data, max_size))
    if len(mutated) >= 8 and random.Random(seed).random() < 0.8:
        del mutated[len(mutated) // 8 * 8 :]
        struct.pack_into("!I", mutated, 4, len(mutated) - 8)
    return bytes(mutated)


def main() -> None:
    """Hand the target to libFuzzer, which does not return."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name], custom_mutator=mutate if name in _MESSAGES else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
