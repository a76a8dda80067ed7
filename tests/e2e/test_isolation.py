"""Under load, with clients that disconnect at any moment: no client gets a key or an identity that is not its own."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from kmip_lab.certs import Authority
from kmip_lab.keymanager.journal import read_journal
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import get_key, key_value
from OpenSSL import SSL

from gateway.config import Address
from gateway.errors import GatewayError
from gateway.kmip import compose, ttlv
from gateway.kmip.spec import ObjectType, Operation, ResultReason, ResultStatus, Tag
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    free_port,
    running_gateway,
    running_key_managers,
)

SECONDS = 5
CLIENTS = 6  # of each identity


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("isolation"))
    identities = [
        Identity("red", '{ subject_cn = "red-*" }', credential="red"),
        Identity("blue", '{ subject_cn = "blue-*" }', credential="blue"),
    ]
    with (
        running_key_managers(certificates, ("kms-1", "kms-2"), "--operation-cost", "0.002") as ports,
        running_gateway(certificates, GatewaySettings(ports, identities, backend="max_sessions = 5")) as gateway,
    ):
        yield gateway


def register(value: bytes) -> bytes:
    """Return a Register of a symmetric key with this value."""
    block = ttlv.structure(
        Tag.KEY_BLOCK,
        ttlv.enumeration(Tag.KEY_FORMAT_TYPE, 1),
        ttlv.structure(Tag.KEY_VALUE, ttlv.octets(Tag.KEY_MATERIAL, value)),
        ttlv.enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, 3),
        ttlv.integer(Tag.CRYPTOGRAPHIC_LENGTH, len(value) * 8),
    )
    mask = ttlv.structure(
        Tag.ATTRIBUTE,
        ttlv.text(Tag.ATTRIBUTE_NAME, "Cryptographic Usage Mask"),
        ttlv.integer(Tag.ATTRIBUTE_VALUE, 12),
    )
    payload = (
        ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY),
        ttlv.structure(Tag.TEMPLATE_ATTRIBUTE, mask),
        ttlv.structure(Tag.SYMMETRIC_KEY, block),
    )
    return compose.encode_request((1, 2), [compose.Ask(Operation.REGISTER, b"".join(payload))])


@dataclass
class ClientRecord:
    """The keys and the observations of the clients of one identity."""

    keys: dict[str, bytes] = field(default_factory=dict)
    gets: int = 0
    abandoned: int = 0
    failures: list[str] = field(default_factory=list)


async def behave(client: Client, record: ClientRecord, rng: random.Random) -> None:
    """Register a key, get it and another key of the identity, and check both values."""
    value = rng.randbytes(32)
    registered = await client.ask(register(value))
    if registered.items[0].status != ResultStatus.SUCCESS:
        record.failures.append(repr(registered))
        return
    own = registered.items[0].unique_identifiers[0].decode()
    record.keys[own] = value
    for uid in (own, rng.choice(list(record.keys))):
        response = await client.ask(get_key(uid))
        assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
        assert key_value(response) == record.keys[uid]
        record.gets += 1


async def misbehave(client: Client, record: ClientRecord, rng: random.Random) -> None:
    """Leave at a wrong moment: in the middle of a request, right behind it, or while its answer is on its way."""
    if not record.keys:
        return
    record.abandoned += 1
    frame = get_key(rng.choice(list(record.keys)))
    match rng.randrange(3):
        case 0:
            await client.stream.send_all(frame[: rng.randrange(1, len(frame))])
        case 1:
            await client.stream.send_all(frame)
        case _:
            with trio.move_on_after(rng.random() * 0.01):
                await client.ask(frame)
    client.stream.close()


async def live(gateway: Gateway, context: SSL.Context, record: ClientRecord, rng: random.Random) -> None:
    while True:
        try:
            async with connect(gateway.address, context, server_name="localhost") as client:
                await rng.choice((behave, behave, misbehave))(client, record, rng)
        except GatewayError as error:
            record.failures.append(str(error))


async def test_no_client_gets_an_answer_to_another_request(gateway: Gateway) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    records = {"red": ClientRecord(), "blue": ClientRecord()}
    with trio.move_on_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for identity, record in records.items():
                for number in range(CLIENTS):
                    pair = gateway.certificates.client(f"{identity}-{number}")
                    context = client_context(*pair, gateway.certificates.path("gateway_ca.pem"))
                    nursery.start_soon(live, gateway, context, record, random.Random(rng.random()))

    for record in records.values():
        assert record.failures == []
        assert record.gets > 50
        assert record.abandoned > 10
    journal = read_journal(gateway.certificates.path("journal.jsonl"))
    owners = {uid: entry.owner for entry in journal for uid in entry.uids}
    for identity, record in records.items():
        assert {owners[uid] for uid in record.keys} == {identity}
    # No client that left cost a session.
    assert gateway.total("kmip_gateway_sessions_closed_total", reason="error") == 0


async def test_an_identity_can_not_read_the_keys_of_another(gateway: Gateway) -> None:
    ca = gateway.certificates.path("gateway_ca.pem")
    red, blue = (client_context(*gateway.certificates.client(f"{name}-x"), ca) for name in ("red", "blue"))
    async with connect(gateway.address, red, server_name="localhost") as client:
        registered = await client.ask(register(b"r" * 32))
    uid = registered.items[0].unique_identifiers[0].decode()
    for _ in range(20):  # whichever pooled session serves it
        async with connect(gateway.address, blue, server_name="localhost") as client:
            refused = await client.ask(get_key(uid))
        assert refused.items[0].status == ResultStatus.OPERATION_FAILED


async def test_equal_names_under_two_cas_are_two_identities(tmp_path: Path) -> None:
    """Issuer and subject have equal names; each listener trusts its own CA, and has its own rules."""
    certificates = Certificates(tmp_path)
    impostor_ca = Authority("Clients CA", "ecdsa")
    certificates.path("partners_ca.pem").write_bytes(impostor_ca.certificate_pem)
    impostor_ca.issue_client("payroll").write(*certificates.pair("impostor"))
    partners = Address("127.0.0.1", free_port())
    identities = [
        Identity("payroll", '{ subject_cn = "payroll" }\nlisteners = "kmip"', shared=False, credential="payroll"),
        Identity("partner", '{ subject_cn = "payroll" }\nlisteners = "partners"', shared=False, credential="partner"),
        Identity("staff", '{ subject_cn = "staff" }\nlisteners = "kmip"', shared=False, credential="staff"),
    ]
    listener = f"""
[[listeners]]
name = "partners"
bind = "{partners}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "partners_ca.pem"
"""
    ca = certificates.path("gateway_ca.pem")
    payroll, impostor = (
        client_context(*pair, ca) for pair in (certificates.client("payroll"), certificates.pair("impostor"))
    )
    impostor_ca.issue_client("staff").write(*certificates.pair("staff"))
    staff = client_context(*certificates.pair("staff"), ca)
    with (
        running_key_managers(certificates) as ports,
        running_gateway(certificates, GatewaySettings(ports, identities, listener=listener)) as gateway,
    ):
        async with connect(gateway.address, payroll, server_name="localhost") as client:
            registered = await client.ask(register(b"p" * 32))
        uid = registered.items[0].unique_identifiers[0].decode()
        async with connect(partners, impostor, server_name="localhost") as client:
            refused = await client.ask(get_key(uid))
        assert refused.items[0].status == ResultStatus.OPERATION_FAILED
        async with connect(partners, staff, server_name="localhost") as client:
            nobody = await client.ask(get_key(uid))
        assert nobody.items[0].reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        with pytest.raises(GatewayError):
            async with connect(gateway.address, impostor, server_name="localhost") as client:
                await client.ask(get_key(uid))
