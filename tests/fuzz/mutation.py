"""Mutations of KMIP messages for sessions against a running gateway: bits, bytes, lengths, types, and whole fields."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Final

_LENGTHS: Final = (0, 1, 7, 8, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20)
_TYPES: Final = 12  # KMIP has 11 types, from 1


class Mutator:
    """Makes broken messages of whole messages; the same seed makes the same messages."""

    def __init__(self, seeds: Sequence[bytes], rng: random.Random) -> None:
        self._seeds = seeds
        self._rng = rng
        self._ways: list[Callable[[bytearray, int], None]] = [
            self._set_byte,
            self._flip_bit,
            self._insert,
            self._delete,
            self._change_length,
            self._change_type,
            self._splice,
            self._append,
        ]

    def mutated(self) -> bytes:
        """Return a seed after up to nine mutations; its length is usually corrected."""
        rng = self._rng
        message = bytearray(rng.choice(self._seeds))
        for _ in range(rng.choice((0, 1, 1, 2, 4, 9))):
            rng.choice(self._ways)(message, rng.randrange(len(message)) if message else 0)
        if rng.random() < 0.6 and len(message) >= 8:
            struct.pack_into("!I", message, 4, len(message) - 8)
        return bytes(message)

    def _set_byte(self, message: bytearray, place: int) -> None:
        message[place : place + 1] = self._rng.randbytes(1)

    def _flip_bit(self, message: bytearray, place: int) -> None:
        if message:
            message[place] ^= 1 << self._rng.randrange(8)

    def _insert(self, message: bytearray, place: int) -> None:
        message[place:place] = self._rng.randbytes(self._rng.choice((1, 4, 8, 8, 16)))

    def _delete(self, message: bytearray, place: int) -> None:
        del message[place : place + self._rng.choice((1, 4, 8, 16))]

    def _change_length(self, message: bytearray, place: int) -> None:
        place -= place % 8
        if len(message) >= place + 8:
            length = self._rng.choice((*_LENGTHS, len(message), len(message) - 8))
            struct.pack_into("!I", message, place + 4, length & 0xFFFFFFFF)

    def _change_type(self, message: bytearray, place: int) -> None:
        place -= place % 8
        message[place + 3 : place + 4] = bytes([self._rng.randrange(_TYPES)])

    def _splice(self, message: bytearray, place: int) -> None:
        other = self._rng.choice(self._seeds)
        message[place - place % 8 : place - place % 8] = other[: self._rng.randrange(len(other) + 1)]

    def _append(self, message: bytearray, _place: int) -> None:
        message += self._rng.choice(self._seeds)
