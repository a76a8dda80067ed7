"""A load over reloads, renewed certificates, bad files, and with TLS workers the death of one: clients notice nothing.

``make reload-soak`` runs it for a minute; RELOAD_SECONDS is its length. The table at the end counts the requests.
"""

import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from kmip_lab.certs import Authority
from kmip_lab.keymanager import KeyManager, Store

from gateway import tls
from tests.kit import processes
from tests.kit.processes import HOSTS, Certificates, Gateway, GatewaySettings, Identity, running_gateway, write_config
from tests.kit.reloads import Load, Reloads, table, under_load
from tests.kit.worker_processes import accepting_workers_of, clients_of, worker_of

SECONDS: Final = float(os.environ.get("RELOAD_SECONDS", "15"))
CLIENTS: Final = 6  # four with a kept connection, two with a fresh one for each request
MIN_IDLE: Final = CLIENTS  # sessions of each pool, so that requests open none
ALICE: Final = Identity("alice", '{ subject_cn = "alice" }', shared=False, credential="alice")
BOB: Final = Identity("bob", '{ subject_cn = "bob" }', shared=False, credential="bob")
CAROL: Final = Identity("carol", '{ subject_cn = "carol" }', shared=False, credential="carol")
EXTRA: Final = f"""
[pool]
min_idle = {MIN_IDLE}
idle_timeout = 600.0
"""


class Soak:
    """A gateway under load in front of three key managers, which count their sessions."""

    def __init__(self, gateway: Gateway, key_managers: list[KeyManager], workers: int) -> None:
        self.gateway = gateway
        self.load = Load(gateway)
        self.workers = workers
        self.it = Reloads(gateway)
        self.certificates = gateway.certificates
        self.cut_off = 0  # requests and handshakes on the killed worker
        self._key_managers = key_managers
        self._seen = 0

    @property
    def opened(self) -> int:
        """Sessions that the key managers have accepted."""
        return sum(key_manager.sessions_opened for key_manager in self._key_managers)

    async def expect(self, sessions: int, checks: int = 0) -> None:
        """Wait until the key managers have accepted so many sessions more, and ``checks`` for health checks; no others.

        While a pool is filled, requests may open further sessions, at most one for each client.
        """
        least = self._seen + sessions + checks
        with trio.move_on_after(15):
            while self.opened < least:  # noqa: ASYNC110 - the gateway is another process
                await trio.sleep(0.05)
        await trio.sleep(0.2)
        self._seen = self.opened
        assert least <= self._seen <= least + (CLIENTS if sessions else 0)

    async def kill_a_worker(self) -> None:
        """Kill the worker with most clients, and count what ends with it: a stopped worker accepts no more."""
        worker = max(accepting_workers_of(self.gateway), key=lambda one: len(clients_of(one, self.gateway)))
        os.kill(worker, signal.SIGSTOP)
        ports = clients_of(worker, self.gateway)
        os.kill(worker, signal.SIGKILL)
        with trio.fail_after(15):
            while len(accepting_workers_of(self.gateway)) < self.workers:  # noqa: ASYNC110 - as above
                await trio.sleep(0.05)
        self.cut_off, between_requests = len(self.load.failures), self.load.let_go
        assert 1 <= self.cut_off + between_requests <= len(ports)
        assert {failure.port for failure in self.load.failures} <= ports
        self.load.failures.clear()
        self.load.let_go = 0

    def check_resumption(self) -> None:
        """Resume one session on every worker; again if workers were being replaced meanwhile."""
        for _ in range(20):
            accepting = self._accepting()
            problem = self._resume_on(accepting)
            if len(accepting) == max(1, self.workers) and self._accepting() == accepting:
                assert problem == ""
                return
            time.sleep(0.2)
        raise AssertionError("workers are replaced all the time")

    def _accepting(self) -> set[int]:
        return {*accepting_workers_of(self.gateway)} if self.workers else {0}

    def _resume_on(self, workers: set[int]) -> str:
        """Resume one session until each of these workers has resumed it. Return what went wrong, or ""."""
        context = ssl.create_default_context(cafile=str(self.certificates.path("gateway_ca.pem")))
        context.load_cert_chain(*self.certificates.client("alice"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        address = (self.gateway.address.host, self.gateway.address.port)
        with (
            socket.create_connection(address) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as first,
        ):
            session = first.session
        missing = {*workers}
        for _ in range(400):
            with (
                socket.create_connection(address) as sock,
                context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
            ):
                if not tls.session_reused:
                    return "a full handshake instead of a resumption"
                missing.discard(worker_of(tls.getsockname()[1], self.gateway) if self.workers else 0)
            if not missing:
                return ""
        return f"no session was resumed on {missing}"


@asynccontextmanager
async def running_soak(certificates: Certificates, nursery: trio.Nursery, workers: int) -> AsyncIterator[Soak]:
    context = tls.server_context(*certificates.pair("kms"), certificates.path("kms_clients_ca.pem"))
    store = Store()
    key_managers = [KeyManager(f"kms-{number}", store, context=context) for number in (1, 2, 3)]
    for key_manager in key_managers:
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    ports = [key_manager.port for key_manager in key_managers]
    settings = GatewaySettings(ports[:2], [ALICE, BOB], extra=EXTRA)
    certificates.credential("carol")
    manager = running_gateway(certificates, settings)
    gateway = await trio.to_thread.run_sync(manager.__enter__)
    try:
        soak = Soak(gateway, key_managers, workers)
        await soak.expect(2 * 2 * MIN_IDLE, 2)
        async with under_load(soak.load, kept=4, fresh=CLIENTS - 4):
            yield soak
    finally:
        await trio.to_thread.run_sync(manager.__exit__, None, None, None)
        store.close()


def added_tables(certificates: Certificates, ports: list[int]) -> tuple[str, str]:
    """Return the tables of another backend and another identity, as the kit writes them."""
    path = write_config(certificates, GatewaySettings(ports, [ALICE, BOB, CAROL], extra=EXTRA), 1, 2)
    text = path.read_text()
    path.unlink()
    return table(text, "kms-3"), table(text, "carol")


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("workers", [0, 2])
async def test_clients_notice_nothing(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    certificates = Certificates(tmp_path)
    async with running_soak(certificates, nursery, workers) as soak:
        it, load, original = soak.it, soak.load, soak.it.original
        kms_3, carol = added_tables(certificates, [key_manager.port for key_manager in soak._key_managers])
        timed = original.replace('tls_policy = "modern"', 'tls_policy = "modern"\nrequest_timeout = 9.0')

        def limited(text: str) -> str:
            return text + "\n[limits]\nmax_clients = 500\n[per_address]\nmax_clients = 400\n"

        def renew_server() -> None:
            certificates.gateway_ca.issue_server("renewed", HOSTS).write(*certificates.pair("server"))

        def renew_alice() -> None:
            certificates.kms_clients_ca.issue_client("alice").write(*certificates.pair("credential-alice"))

        def add_ca() -> None:
            with certificates.path("clients_ca.pem").open("ab") as file:
                file.write(Authority("Another CA").certificate_pem)

        # The new text of the file, or a change of other files; the sessions of pools and of health checks that follow.
        steps: list[tuple[str | Callable[[], None], int, int]] = [
            (original, 0, 0),
            (original.replace('name = "kms-2"', 'name = "kms-2"\nweight = 3'), 0, 0),
            ("not TOML", 0, 0),
            (original + kms_3, 2 * MIN_IDLE, 1),
            (renew_server, 0, 0),
            (original, 0, 0),
            (original + carol, 2 * MIN_IDLE, 2),
            (original, 0, 2),
            (renew_alice, 2 * MIN_IDLE, 2),
            (limited(original), 0, 0),
            (original + "\n[limits]\nmax_clients = 0\n", 0, 0),
            (timed, 0, 0),
            (add_ca, 0, 0),
            (limited(timed), 0, 0),
            (original, 0, 0),
        ]
        pause = max(0.0, (SECONDS - 12) / len(steps))
        await it.look()
        for number, (step, sessions, checks) in enumerate(steps):
            if isinstance(step, str):
                is_bad = step == "not TOML" or "max_clients = 0" in step
                await it.reload(step, "failure" if is_bad else "success")
            else:
                step()
                await it.files_changed()
            await soak.expect(sessions, checks)
            if workers and number == 1:  # all kept clients are with the workers that accept
                await soak.kill_a_worker()
            if workers or isinstance(step, str):
                await trio.to_thread.run_sync(soak.check_resumption)
            before = dict(load.answered)
            await trio.sleep(pause)
            await it.until(lambda: all(load.answered[kind] > before[kind] for kind in before))  # noqa: B023
        await it.look()
        assert load.failures == []
        assert it.total("kmip_gateway_session_open_failures_total") == 0
        assert it.total("kmip_gateway_local_errors_total") == 0
        print(
            f"\n{workers} TLS workers: {sum(load.answered.values())} requests ({load.answered}), failed and refused"
            f" {len(load.failures)}, {soak.cut_off} on the killed worker; {load.let_go} kept clients let go;"
            f" {soak.opened} sessions; {it.looks} looks at the counters"
        )
    text = soak.gateway.log.read_text()
    assert "Traceback" not in text
    assert "internal error" not in text
