"""Key managers that replicate, each in a process of its own: the changes that are lost with a killed master."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from kmip_lab.keymanager import Link, Member, Role, Store, promote, write_roles
from kmip_lab.keymanager.command import keymanager
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key

from gateway.config import Address
from gateway.errors import StreamClosedError
from gateway.kmip.compose import query
from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.tls import client_context
from lab.tests.kit.keymanager_process import options, ready_port, running


@contextlib.contextmanager
def process_of(name: str, certificates: Path, directory: Path) -> Iterator[tuple[Address, "contextlib.ExitStack"]]:
    """Run a key manager of the cluster in this directory; yield its address, and a stack whose close() kills it."""
    arguments = [f"--name={name}", "--bind=127.0.0.1:0", f"--cluster={directory}", *options(certificates)]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running(*arguments))
        yield Address("127.0.0.1", ready_port(process, name)), stack


async def until_answered(client: Client, request: bytes, holds: Callable[[Response], bool]) -> None:
    """Send a request until its answer meets the condition."""
    while not holds(await client.ask(request)):
        pass


@pytest.mark.parametrize(
    ("link", "kept"), [(Link(synchronous=True), True), (Link(delay=3600), False)], ids=["synchronous", "asynchronous"]
)
async def test_a_killed_masters_unsent_change_is_missing_until_it_is_back(
    certificates: Path, tmp_path: Path, link: Link, kept: bool
) -> None:
    context = client_context(
        certificates / "gateway-client.pem", certificates / "gateway-client.key", certificates / "kms-ca.pem"
    )
    write_roles(tmp_path, {"a": Member(Role.MASTER, {"b": link}), "b": Member()})
    with (
        process_of("a", certificates, tmp_path) as (master, kill_master),
        process_of("b", certificates, tmp_path) as (standby, _),
        trio.fail_after(30),
    ):
        async with connect(master, context, server_name="localhost") as client:
            await until_answered(client, query(), lambda response: b"InStep=b" in response.frame)
            made = (await client.ask(create_key())).items[0]
            assert made.status == ResultStatus.SUCCESS
        kill_master.close()
        async with connect(standby, context, server_name="localhost") as client:
            assert b"ServerType=standby" in (await client.ask(query())).frame
            promote(tmp_path, "b", instead_of="a")
            assert b"ServerType=master" in (await client.ask(query())).frame
            got = (await client.ask(get_key(made.unique_identifiers[0].decode()))).items[0]
            assert (got.status == ResultStatus.SUCCESS) == kept
            assert kept or got.reason == ResultReason.ITEM_NOT_FOUND
        # Once the killed key manager is a master again, it sends the changes that it had not sent.
        with process_of("a", certificates, tmp_path):
            promote(tmp_path, "a")
            write_roles(tmp_path, {"a": Member(Role.MASTER), "b": Member(serves_reads=True)})
            async with connect(standby, context, server_name="localhost") as client:
                request = get_key(made.unique_identifiers[0].decode())
                await until_answered(client, request, lambda response: not response.items[0].status)


async def test_no_answered_write_is_lost_with_a_killed_synchronous_master(certificates: Path, tmp_path: Path) -> None:
    """Kill a master while two clients write: its synchronous replica has every object whose Create was answered."""
    context = client_context(
        certificates / "gateway-client.pem", certificates / "gateway-client.key", certificates / "kms-ca.pem"
    )
    write_roles(tmp_path, {"a": Member(Role.MASTER, {"b": Link(0.001, synchronous=True)}), "b": Member()})
    answered: list[str] = []
    enough = trio.Event()

    async def write(master: Address) -> None:
        with contextlib.suppress(StreamClosedError, OSError):
            async with connect(master, context, server_name="localhost") as client:
                await until_answered(client, query(), lambda response: b"InStep=b" in response.frame)
                while True:
                    made = (await client.ask(create_key())).items[0]
                    answered.append(made.unique_identifiers[0].decode())
                    if len(answered) >= 50:
                        enough.set()

    with (
        process_of("a", certificates, tmp_path) as (master, kill_master),
        process_of("b", certificates, tmp_path),
        trio.fail_after(60),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, master)
            nursery.start_soon(write, master)
            await enough.wait()
            kill_master.close()
        replica = Store(tmp_path / "b.sqlite")
        assert [uid for uid in answered if replica.get(uid) is None] == []
        replica.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--store=objects.db", "--name=a"], 2, "--store can't be used with --cluster"),
        ([], 2, "--cluster needs --name"),
        (["--name=a"], 1, "roles.json"),
    ],
)
def test_invalid_cluster_options_are_reported(
    certificates: Path, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    result = CliRunner().invoke(keymanager, [f"--cluster={tmp_path}", *arguments, *options(certificates)])
    assert result.exit_code == status
    assert words in result.output
