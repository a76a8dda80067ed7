"""The canary: no output of the gateway has a key, a password, a passphrase or a token, whatever fails on the way."""

import base64
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key, get_key, key_value

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.messages import Response
from gateway.kmip.spec import CredentialType, ObjectType, Operation, Tag
from gateway.tls import client_context
from tests.kit import processes
from tests.kit.authorities import encrypt, write_secret
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)
from tests.kit.worker_processes import children_of

KEY_VALUE: Final = b"canary-key-value-of-32-bytes-abc"
HEADER_PASSWORD: Final = "canary-password-in-a-header"
PASSWORD: Final = "canary-password-of-the-gateway"
PASSPHRASE: Final = "canary-passphrase-of-a-private-key"
TOKEN: Final = "canary-token-of-the-admin-port-0123456789"
LISTENER_PASSPHRASE: Final = "canary-passphrase-of-the-listener"
TIMES: Final = """
[failover]
try_timeout = 0.5
when_none = "answer"
[deadlines]
request = 3.0
[pool]
queue_timeout = 2.0
[health]
interval = 0.3
[log]
level = "debug"
[audit]
to = "file"
file = "audit.jsonl"
"""
IDENTITY: Final = """
passphrase_file = "passphrase"
credential = "password"
username = "alice"
password_file = "password"
client_credential = "pass"
"""


def forms(secret: bytes) -> list[bytes]:
    """Return a secret as it may stand in an output: plain, in hexadecimal digits, in Base64 at any offset."""
    encoded = [base64.b64encode(b"x" * shift + secret)[4 if shift else 0 :][:-4] for shift in range(3)]
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *encoded]


def authentication(password: str) -> bytes:
    username = ttlv.structure(Tag.CREDENTIAL_VALUE, ttlv.text(Tag.USERNAME, "alice"), ttlv.text(Tag.PASSWORD, password))
    kind = ttlv.enumeration(Tag.CREDENTIAL_TYPE, CredentialType.USERNAME_AND_PASSWORD)
    return ttlv.structure(Tag.AUTHENTICATION, ttlv.structure(Tag.CREDENTIAL, kind, username))


def register(header: Sequence[bytes]) -> bytes:
    """Return a Register of a symmetric key with the known value (1.4 section 4.3)."""
    material = ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, KEY_VALUE))
    block = ttlv.structure(Tag.KEY_BLOCK, ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 1), material)
    payload = ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY) + ttlv.structure(Tag.SYMMETRIC_KEY, block)
    return encode_request((1, 4), [Ask(Operation.REGISTER, payload)], header=header)


class Site:
    """A gateway with every kind of secret, and what it wrote."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.outputs: list[bytes] = []
        for name, secret in (
            ("passphrase", PASSPHRASE),
            ("listener-passphrase", LISTENER_PASSPHRASE),
            ("password", PASSWORD),
            ("tokens", TOKEN),
        ):
            write_secret(certificates.path(name), secret + "\n")
        _, key = certificates.credential("gateway")
        write_secret(key, encrypt(key.read_bytes(), PASSPHRASE.encode()))
        _, key = certificates.pair("server")
        write_secret(key, encrypt(key.read_bytes(), LISTENER_PASSPHRASE.encode()))

    def settings(self, port: int) -> GatewaySettings:
        return GatewaySettings(
            [port],
            [Identity("everyone")],
            listener='passphrase_file = "listener-passphrase"',
            identity=IDENTITY,
            extra='socket = "control.sock"\ntoken_file = "tokens"\n' + TIMES,
        )

    async def ask(self, gateway: Gateway, *frames: bytes) -> list[Response]:
        tls = client_context(*self.certificates.client("alice"), self.certificates.path("gateway_ca.pem"))
        async with connect(gateway.address, tls, server_name="localhost") as client:
            return [await client.ask(frame) for frame in frames]

    async def send_broken(self, gateway: Gateway, frame: bytes) -> None:
        tls = client_context(*self.certificates.client("alice"), self.certificates.path("gateway_ca.pem"))
        async with connect(gateway.address, tls, server_name="localhost") as client:
            await client.stream.send_all(frame)
            with trio.move_on_after(0.5):
                self.outputs.append(await client.stream.receive_some())

    def read_admin(self, gateway: Gateway, path: str, authorization: str, most: int = -1) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{gateway.admin_port}{path}")
        request.add_header("Authorization", authorization)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
                self.outputs.append(repr(answer.headers.items()).encode() + answer.read(most))
        except urllib.error.HTTPError as error:
            with error:
                self.outputs.append(repr(error.headers.items()).encode() + error.read())

    def read_processes(self, gateway: Gateway) -> None:
        """Take the command lines and the environments of all processes, as far as the kernel shows them."""
        for process in (gateway.process.pid, *children_of(gateway.process.pid)):
            for name in ("cmdline", "environ"):
                try:
                    self.outputs.append(Path(f"/proc/{process}/{name}").read_bytes())
                except PermissionError:
                    assert name == "environ"

    async def run_command(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "gateway", *arguments]
        ended = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        self.outputs += [ended.stdout, ended.stderr]

    async def reload_with(self, gateway: Gateway, name: str, content: bytes) -> None:
        """Reload with another content of a file, and put back the old one."""
        path = self.certificates.path(name)
        before, count = path.read_bytes(), gateway.log.read_text().count("not reloaded")
        write_secret(path, content)
        gateway.process.send_signal(signal.SIGHUP)
        reached = lambda: gateway.log.read_text().count("not reloaded") > count  # noqa: E731
        await trio.to_thread.run_sync(wait_until, reached, f"the mistake in {name}")
        await self.run_command("check", str(self.certificates.path(f"gateway-{gateway.port}.toml")))
        write_secret(path, before)


@pytest.mark.parametrize("workers", [0, 2])
async def test_no_output_of_the_gateway_has_a_secret(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    certificates = Certificates(tmp_path)
    site = Site(certificates)
    header = [authentication(HEADER_PASSWORD)]
    with (
        running_key_manager_processes(certificates, ["kms-1"]) as (key_manager,),
        running_gateway(certificates, site.settings(key_manager.port)) as gateway,
    ):
        (made,) = await site.ask(gateway, create_key())
        (got,) = await site.ask(gateway, get_key(made.items[0].unique_identifiers[0].decode()))
        key = key_value(got)
        for faults in (
            [],
            [FaultSetting(Fault.GARBAGE)],
            [FaultSetting(Fault.CUT, bytes=40)],
            [FaultSetting(Fault.RESET_AFTER_EXECUTING)],
            [FaultSetting(Fault.HANG_UP)],
        ):
            key_manager.set_faults(*faults)
            await trio.sleep(0.2)
            for frame in (register(header), register([]), encode_request((1, 4), [Ask(Operation.PUT)], header=header)):
                site.outputs += [answer.frame for answer in await site.ask(gateway, frame)]
        broken = register(header)
        for frame in (
            broken[:-8] + b"\xff" * 8,
            broken[: -len(KEY_VALUE)],
            broken.replace(b"\x42\x00\x0c", b"\x42\x00\x77"),
        ):
            await site.send_broken(gateway, frame)
        await site.reload_with(gateway, "passphrase", f"wrong-{PASSPHRASE}".encode())
        await site.reload_with(gateway, "listener-passphrase", f"wrong-{LISTENER_PASSPHRASE}".encode())
        await site.reload_with(gateway, "password", f"{PASSWORD}\n{PASSWORD}".encode())
        await site.reload_with(gateway, "tokens", TOKEN[:12].encode() + b"\n" + TOKEN.encode() + b"\xff")
        key_manager.kill()
        await site.ask(gateway, register(header))
        for authorization in (f"Bearer {TOKEN}", f"Bearer wrong-{TOKEN}", f"Basic {TOKEN}", TOKEN):
            for path in ("/metrics", "/", f"/metrics?token={TOKEN}"):
                site.read_admin(gateway, path, authorization)
        site.read_admin(gateway, "/events", f"Bearer {TOKEN}", 4096)
        for command in ("status", "config"):
            await site.run_command(command, "--json", "--socket", str(certificates.path("control.sock")))
        site.read_processes(gateway)
        gateway.process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(gateway.process.wait, 30) == 0
    site.outputs += [gateway.log.read_bytes(), certificates.path("audit.jsonl").read_bytes()]
    assert sum(output.count(b'"operation":"Register"') for output in site.outputs) >= 12
    assert any(b"kmip_gateway_requests_total" in output for output in site.outputs)
    assert any(b"data: {" in output for output in site.outputs)
    secrets = [KEY_VALUE, key, TOKEN[:12].encode()]
    secrets += [text.encode() for text in (HEADER_PASSWORD, PASSWORD, PASSPHRASE, LISTENER_PASSPHRASE, TOKEN)]
    for secret in secrets:
        for form in forms(secret):
            assert [output for output in site.outputs if form in output] == [], form
