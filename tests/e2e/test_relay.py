"""The relay and the fake resolver that the chaos test uses."""

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.kit.tcp_relay import Relay, resolver_environment, write_names

SOON = 0.2  # s: bytes that have not arrived by then do not arrive
HOSTS = ("127.0.0.2", "127.0.0.3")


@pytest.fixture
async def relay(nursery: trio.Nursery) -> Relay:
    """Run a relay to a server that sends received bytes back."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, _echo, [listener])
    relay = Relay(listener.socket.getsockname()[1], HOSTS)
    nursery.start_soon(relay.run)
    await trio.testing.wait_all_tasks_blocked()
    return relay


async def _echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


@asynccontextmanager
async def _connected(relay: Relay, host: str = "") -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(host or relay.host, relay.port) as stream:
        yield stream


async def _echoes(stream: trio.SocketStream) -> bool:
    """Return True if an answer comes back."""
    await stream.send_all(b"x")
    with trio.move_on_after(SOON):
        return await stream.receive_some(1) == b"x"
    return False


async def test_the_relay_forwards_and_closes_with_its_peers(relay: Relay) -> None:
    async with _connected(relay) as stream:
        assert await _echoes(stream)
        await stream.send_eof()
        assert await stream.receive_some(1) == b""
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert "0 flows" in repr(relay)


async def test_swallowed_flows_stay_open_silently_and_new_ones_pass(relay: Relay) -> None:
    async with _connected(relay) as old:
        assert await _echoes(old)
        relay.swallow()
        assert not await _echoes(old)
        async with _connected(relay) as new:
            assert await _echoes(new)
        assert relay.swallowed == 1
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert relay.swallowed == 0


@pytest.mark.parametrize("swallow", [False, True])
async def test_the_relay_moves_to_another_address(relay: Relay, swallow: bool) -> None:
    async with _connected(relay) as old:
        assert await _echoes(old)
        relay.open_elsewhere()
        assert relay.host == HOSTS[1]
        async with _connected(relay) as new:
            assert await _echoes(old)
            assert await _echoes(new)
            relay.close_old_address(swallow=swallow)
            if swallow:
                assert not await _echoes(old)
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await old.receive_some(1)
            assert await _echoes(new)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(HOSTS[0], relay.port)
        relay.open_elsewhere()  # and back
        async with _connected(relay, HOSTS[0]) as new:
            assert await _echoes(new)


async def test_connections_are_reset_if_the_target_does_not_listen(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    relay = Relay(port, HOSTS)
    nursery.start_soon(relay.run)
    async with _connected(relay) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)


def test_a_name_moves_while_a_process_runs(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    write_names(names, {"a.test": "127.0.0.2"})
    program = """
import socket, trio
async def look(): print((await trio.socket.getaddrinfo("a.test", 1))[0][4][0], flush=True)
trio.run(look); input(); trio.run(look); print(socket.getaddrinfo("127.0.0.1", 1)[0][4][0])
"""
    environment = resolver_environment(names)
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "127.0.0.2\n"
        write_names(names, {"a.test": "127.0.0.3"})
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "127.0.0.3\n127.0.0.1\n"
