"""Overrides: names of tables stand for all their backends, and a backend's own name counts first."""

import pytest
import trio

from gateway.upstream.backend import Backend
from gateway.upstream.overrides import Overrides, table_of
from gateway.upstream.slots import Slots

NAMES = ("atlanta/1", "atlanta/2", "london")


@pytest.fixture
async def backends() -> dict[str, Backend]:
    await trio.lowlevel.checkpoint()
    return {name: Backend(name, Slots(4), {}) for name in NAMES}


def drained(overrides: Overrides, backends: dict[str, Backend]) -> list[str]:
    for backend in backends.values():
        overrides.apply(backend)
    return [name for name, backend in backends.items() if backend.state == "drained"]


async def test_a_drained_table_drains_all_its_backends_and_new_ones(backends: dict[str, Backend]) -> None:
    overrides = Overrides()
    overrides.drain("atlanta")
    assert drained(overrides, backends) == ["atlanta/1", "atlanta/2"]
    overrides.apply(new := Backend("atlanta/3", Slots(4), {}))
    assert new.state == "drained"
    overrides.enable("atlanta", backends)
    assert drained(overrides, backends) == []


async def test_one_backend_of_a_drained_table_can_be_enabled(backends: dict[str, Backend]) -> None:
    overrides = Overrides()
    overrides.drain("atlanta")
    overrides.enable("atlanta/1", backends)
    assert drained(overrides, backends) == ["atlanta/2"]


async def test_one_backend_is_drained_and_enabled_by_its_name(backends: dict[str, Backend]) -> None:
    overrides = Overrides()
    overrides.drain("atlanta/2")
    overrides.drain("london")
    assert drained(overrides, backends) == ["atlanta/2", "london"]
    overrides.enable("london", backends)
    assert drained(overrides, backends) == ["atlanta/2"]
    overrides.enable("atlanta", backends)
    assert drained(overrides, backends) == []


async def test_weights_of_a_backend_and_of_its_table(backends: dict[str, Backend]) -> None:
    overrides = Overrides()

    def weights() -> list[int]:
        for backend in backends.values():
            overrides.apply(backend)
        return [backend.options.weight for backend in backends.values()]

    assert weights() == [1, 1, 1]
    overrides.set_weight("atlanta", 5)
    assert weights() == [5, 5, 1]
    overrides.set_weight("atlanta/2", 7)
    assert weights() == [5, 7, 1]
    overrides.set_weight("atlanta", 2)
    assert weights() == [2, 2, 1]


@pytest.mark.parametrize(("backend", "table"), [("atlanta", "atlanta"), ("atlanta/2", "atlanta")])
def test_the_table_of_a_backend(backend: str, table: str) -> None:
    assert table_of(backend) == table
