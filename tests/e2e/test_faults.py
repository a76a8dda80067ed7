"""Every fault of a key manager, over real TLS and through a real gateway: a read, a change, and a batch of both.

One of two key managers has the fault. The balancer chooses which key manager gets a request first, so each request is
made several times; the journals of the key managers say what was executed.
"""

from collections.abc import Iterator

import pytest
import trio
from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.keymanager.journal import read_journal
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key

from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    KeyManagerProcess,
    running_gateway,
    running_key_manager_processes,
    wait_until,
)

TIMES = 6  # times that each request is made, so that the faulty key manager gets some
QUICK = """
[deadlines]
request = 2
connect = 0.7
[pool]
queue_timeout = 2
[failover]
try_timeout = 0.7
consecutive_failures = 100
max_ejection_time = 0.5
[health]
interval = 0.2
timeout = 0.7
rise = 1
fall = 100
expect_text = "ServerType=master"
"""
#: Settings of each fault. Faults that break exchanges leave health checks alone, so that requests meet the faults.
KEYS = frozenset({Operation.GET, Operation.CREATE})
SETTINGS = {
    Fault.REFUSE: FaultSetting(Fault.REFUSE, reset=True),
    Fault.DEAF: FaultSetting(Fault.DEAF, operations=KEYS),
    Fault.FREEZE: FaultSetting(Fault.FREEZE),
    Fault.SLOW: FaultSetting(Fault.SLOW, seconds=0.3, operations=KEYS),
    Fault.RESET_BEFORE_READING: FaultSetting(Fault.RESET_BEFORE_READING, operations=KEYS),
    Fault.RESET_AFTER_EXECUTING: FaultSetting(Fault.RESET_AFTER_EXECUTING, operations=KEYS),
    Fault.HANG_UP: FaultSetting(Fault.HANG_UP, operations=KEYS),
    Fault.CUT: FaultSetting(Fault.CUT, bytes=40, operations=KEYS),
    Fault.GARBAGE: FaultSetting(Fault.GARBAGE, bytes=100, operations=KEYS),
    Fault.EXTRA: FaultSetting(Fault.EXTRA, bytes=30, operations=KEYS),
    Fault.IDLE_CLOSE: FaultSetting(Fault.IDLE_CLOSE, seconds=0.05),
    Fault.WRONG_CERTIFICATE: FaultSetting(Fault.WRONG_CERTIFICATE),
    Fault.REFUSE_CREDENTIAL: FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"gateway"})),
    Fault.STANDBY: FaultSetting(Fault.STANDBY),
}
#: Faults after which it is unknown whether a change was executed.
LEAVE_IN_DOUBT = {
    Fault.DEAF,
    Fault.FREEZE,
    Fault.RESET_BEFORE_READING,
    Fault.RESET_AFTER_EXECUTING,
    Fault.HANG_UP,
    Fault.CUT,
    Fault.GARBAGE,
    Fault.IDLE_CLOSE,  # between the check of a session and the request on it
}


@pytest.fixture(scope="module")
def key_managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Certificates, list[KeyManagerProcess]]]:
    certificates = Certificates(tmp_path_factory.mktemp("faults"))
    with running_key_manager_processes(certificates, ["kms-1", "kms-2"]) as running:
        yield certificates, running


@pytest.fixture(scope="module")
def gateway(key_managers: tuple[Certificates, list[KeyManagerProcess]]) -> Iterator[Gateway]:
    certificates, running = key_managers
    with running_gateway(certificates, GatewaySettings([one.port for one in running], extra=QUICK)) as gateway:
        yield gateway


def batch(uid: str, contact: str) -> bytes:
    """Return a request with a Get and a Create."""
    create = decode_request(create_key(contact=contact))
    start, end = create.items[0].fields[Tag.REQUEST_PAYLOAD]
    asks = [
        compose.Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, uid), b"1"),
        compose.Ask(Operation.CREATE, create.frame[start:end], b"2"),
    ]
    return compose.encode_request((1, 2), asks)


def outcome(response: Response) -> str:
    if all(item.status == ResultStatus.SUCCESS for item in response.items):
        return "success"
    words = " ".join(str(item.message) for item in response.items)
    return "unknown" if "unknown" in words else words


def creates(running: list[KeyManagerProcess]) -> list[str]:
    """Return the unique identifiers of created keys, according to the journals."""
    entries = [entry for one in running if one.journal.exists() for entry in read_journal(one.journal)]
    return [uid for entry in entries if (entry.operation, entry.result) == ("Create", "Success") for uid in entry.uids]


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
async def test_fault(
    gateway: Gateway, key_managers: tuple[Certificates, list[KeyManagerProcess]], fault: Fault
) -> None:
    _, running = key_managers
    faulty = running[0]
    context = client_context(*gateway.certificates.client("alice"), gateway.certificates.path("gateway_ca.pem"))
    async with connect(gateway.address, context, server_name="localhost") as client:
        created = await client.ask(create_key())
        uid = created.items[0].unique_identifiers[0].decode()
        before = creates(running)
        faulty.set_faults(SETTINGS[fault])
        await trio.sleep(0.3)
        try:
            reads = [outcome(await client.ask(get_key(uid))) for _ in range(TIMES)]
            changes = await _ask_each(client, [create_key(contact=f"{fault.value} {n}") for n in range(TIMES)])
            batches = await _ask_each(client, [batch(uid, f"{fault.value} b{n}") for n in range(TIMES)])
        finally:
            faulty.set_faults()
        await trio.sleep(1)  # the key manager reads the file at intervals; the next Create must not meet the fault
        assert reads == ["success"] * TIMES
        made = creates(running)[len(before) :] if fault is not Fault.FREEZE else []
        told = changes + batches
        assert set(told) <= {"success", "unknown"} if fault in LEAVE_IN_DOUBT else set(told) == {"success"}
        assert len(made) == len(set(made))
        if fault is not Fault.FREEZE:
            assert told.count("success") <= len(made) <= told.count("success") + told.count("unknown")
        assert outcome(await client.ask(get_key(uid))) == "success"
    await trio.to_thread.run_sync(wait_until, lambda: _all_up(gateway), "the return of the faulty one")


async def _ask_each(client: Client, frames: list[bytes]) -> list[str]:
    return [outcome(await client.ask(frame)) for frame in frames]


def _all_up(gateway: Gateway) -> bool:
    return gateway.total("kmip_gateway_backend_up") == 2


def test_pykmip_reads_the_message_of_an_unknown_outcome(
    gateway: Gateway, key_managers: tuple[Certificates, list[KeyManagerProcess]]
) -> None:
    _, running = key_managers
    for one in running:
        one.set_faults(SETTINGS[Fault.RESET_AFTER_EXECUTING])
    try:
        with gateway.client() as client:
            wait_until(lambda: "unknown" in create_error(client), "an unknown outcome")
    finally:
        for one in running:
            one.set_faults()


def create_error(client: ProxyKmipClient) -> str:
    """Return the message of the exception that PyKMIP raises for a Create; "" if it succeeds."""
    try:
        client.create(enums.CryptographicAlgorithm.AES, 128)
    except KmipOperationFailure as failure:
        return str(failure)
    return ""
