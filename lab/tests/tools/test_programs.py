"""Gateways and key managers as processes."""

import os
import sys
from pathlib import Path

import click
import pytest
from kmip_lab.keymanager import two_plus_two
from kmip_lab.tools import programs
from kmip_lab.tools.clients import connect, created_key
from kmip_lab.tools.interrupts import run_until_signal
from kmip_lab.tools.programs import free_address, free_addresses, prepare, program
from kmip_lab.tools.requests import create_key, get_key

from gateway.kmip.spec import ResultStatus


async def test_key_managers_that_replicate_are_processes_of_their_own(tmp_path: Path) -> None:
    site = prepare(tmp_path)
    context = site.files.gateway_context()
    async with programs.programs(site, costs={"Create": 0.001}, roles=two_plus_two(0.001, 0.002)) as running:
        assert running.key_managers.keys() == site.key_managers.keys()
        numbers = {each.number for each in (running.gateway, *running.key_managers.values())}
        assert len({os.getpid(), *numbers}) == 6
        for name, status in (
            ("london-001", ResultStatus.SUCCESS),
            ("london-002", ResultStatus.OPERATION_FAILED),
        ):
            async with connect(site.key_managers[name], context, server_name="localhost") as client:
                assert (await client.ask(create_key())).items[0].status == status


async def test_a_killed_key_manager_ends_neither_the_block_nor_the_reads(tmp_path: Path) -> None:
    site = prepare(tmp_path)
    context = site.files.client_context()
    async with programs.programs(site) as running:
        request = get_key(await created_key(site.gateway, context))
        running.key_managers["atlanta-001"].kill()
        async with connect(site.gateway, context, server_name="localhost") as client:
            for _ in range(8):
                assert (await client.ask(request)).items[0].status == ResultStatus.SUCCESS


@pytest.mark.parametrize(
    ("script", "words"),
    [("import sys; sys.exit('no certificate')", "no certificate"), ("", "without a word")],
)
async def test_a_program_that_ends_by_itself_ends_the_block(script: str, words: str) -> None:
    async def work() -> None:
        async with program("the gateway", [sys.executable, "-c", script]):
            await programs.wait_until_listening([free_address()])

    with pytest.raises(click.ClickException, match=rf"^the gateway ended by itself: {words}$"):
        await run_until_signal(work)


async def test_a_program_that_is_not_installed_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"^nginx can't be started: "):
        async with program("nginx", [str(tmp_path / "nginx")]):
            pass


async def test_a_program_that_does_not_listen_in_time_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "START_TIMEOUT", 0.1)
    with pytest.raises(click.ClickException, match=r"does not listen 0\.1 s after its start"):
        await programs.wait_until_listening([free_address()])


def test_free_addresses_are_different() -> None:
    assert len({address.port for address in free_addresses(5)}) == 5
