"""Requests that must reach a certain key manager, through two gateways that share only the key of their marks."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from kmip_lab.keymanager.roles import Link, Member, Role, write_roles
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import activate, create_key, get_key, key_value

from gateway.kmip import compose, ttlv
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.tls import client_context
from tests.kit.bound_requests import LISTED, LOGIN, about, later, making_a_key, ticket_in, with_ticket
from tests.kit.processes import Certificates, Gateway, GatewaySettings, running_gateway, running_key_managers

MASTERS = ("kms-1", "kms-2", "kms-3")
PENDING = 0.5  # s until an asynchronous operation is executed

both_versions = pytest.mark.parametrize("version", [(1, 4), (2, 1)], ids=str)


@pytest.fixture(scope="module")
def key_managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Certificates, list[int]]]:
    certificates = Certificates(tmp_path_factory.mktemp("marks"))
    cluster = certificates.path("cluster")
    cluster.mkdir()
    shared = {name: Link(synchronous=True, timeout=60) for name in MASTERS}  # as the gateways take it for granted
    write_roles(
        cluster,
        {name: Member(Role.MASTER, {to: link for to, link in shared.items() if to != name}) for name in MASTERS},
    )
    options = ("--cluster", str(cluster), "--pending-for", str(PENDING))
    with running_key_managers(certificates, MASTERS, *options) as ports:
        yield certificates, ports


@contextmanager
def gateway_before(key_managers: tuple[Certificates, list[int]], extra: str = "") -> Iterator[Gateway]:
    certificates, ports = key_managers
    with running_gateway(certificates, GatewaySettings(ports, extra=extra)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateways(key_managers: tuple[Certificates, list[int]]) -> Iterator[list[Gateway]]:
    with gateway_before(key_managers) as one, gateway_before(key_managers) as other:
        yield [one, other]


@asynccontextmanager
async def session(gateway: Gateway, name: str = "alice") -> AsyncIterator[Client]:
    context = client_context(*gateway.certificates.client(name), gateway.certificates.path("gateway_ca.pem"))
    async with connect(gateway.address, context, server_name="localhost") as client:
        yield client


async def ask(gateway: Gateway, frame: bytes, name: str = "alice") -> Response:
    async with session(gateway, name) as client:
        return await client.ask(frame)


async def begin(gateway: Gateway, version: Version, what: compose.Ask = LISTED) -> bytes:
    item = (await ask(gateway, later(version, what))).items[0]
    assert item.status == ResultStatus.OPERATION_PENDING
    return item.asynchronous_correlation_value or b""


async def polled(gateway: Gateway, value: bytes, version: Version, name: str = "alice") -> Response:
    """Poll until the operation is no longer pending, and return the last response."""
    while True:
        response = await ask(gateway, about(Operation.POLL, value, version), name)
        if response.items[0].status != ResultStatus.OPERATION_PENDING:
            return response
        value = response.items[0].asynchronous_correlation_value or value
        await trio.sleep(0.1)


@both_versions
async def test_polls_through_another_gateway_find_the_operation(gateways: list[Gateway], version: Version) -> None:
    one, other = gateways
    values = [await begin(one, version) for _ in range(len(MASTERS) * 2)]

    for value in values:
        item = (await polled(other, value, version)).items[0]
        assert (item.operation, item.status) == (Operation.LOCATE, ResultStatus.SUCCESS)
    assert {value[:4] for value in values} == {b"kgw\x01"}
    assert len({value[4:8] for value in values}) == len(MASTERS)


async def test_a_key_made_asynchronously_is_found_through_the_polled_gateway(
    key_managers: tuple[Certificates, list[int]],
) -> None:
    late = '[replication]\nmode = "async"\nfallback_on_not_found = false'
    with gateway_before(key_managers, late) as one, gateway_before(key_managers, late) as other:
        value = await begin(one, (1, 4), making_a_key())
        made = (await polled(other, value, (1, 4))).items[0]
        assert (made.operation, made.status) == (Operation.CREATE, ResultStatus.SUCCESS)
        (uid,) = made.unique_identifiers
        assert len(key_value(await ask(other, get_key(uid.decode())))) == 32
        assert (await ask(other, activate(uid.decode(), (1, 4)))).items[0].status == ResultStatus.SUCCESS


def flipped(value: bytes, place: int) -> bytes:
    """Return the value with a changed byte at an index."""
    return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]


@both_versions
async def test_forged_foreign_and_cut_correlation_values_are_unknown(gateways: list[Gateway], version: Version) -> None:
    value = await begin(gateways[0], version)
    reason = ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE if version >= (2, 0) else ResultReason.ITEM_NOT_FOUND

    for bent in (value[:-1], value[:8], flipped(value, 5), flipped(value, 15), value + b"x"):
        item = (await polled(gateways[1], bent, version)).items[0]
        assert (item.operation, item.status, item.reason) == (Operation.POLL, ResultStatus.OPERATION_FAILED, reason)
    assert (await polled(gateways[1], value, version, "bob")).items[0].reason == reason
    assert (await polled(gateways[1], value, version)).items[0].status == ResultStatus.SUCCESS


async def test_a_correlation_value_is_valid_after_its_gateway_has_ended(
    key_managers: tuple[Certificates, list[int]],
) -> None:
    with gateway_before(key_managers) as before:
        value = await begin(before, (1, 4))
    with gateway_before(key_managers) as after:
        assert (await polled(after, value, (1, 4))).items[0].status == ResultStatus.SUCCESS


async def test_a_cancel_reaches_the_operation(gateways: list[Gateway]) -> None:
    value = await begin(gateways[0], (1, 4))

    item = (await ask(gateways[1], about(Operation.CANCEL, value, (1, 4)))).items[0]

    assert (item.operation, item.status) == (Operation.CANCEL, ResultStatus.SUCCESS)
    assert value in item.frame  # the answer names it as the client knows it


async def test_without_marks_not_a_byte_is_changed(key_managers: tuple[Certificates, list[int]]) -> None:
    with gateway_before(key_managers, "[replication]\nmarks = false") as gateway:
        value = await begin(gateway, (1, 4))
        assert not value.startswith(b"kgw")


CTR, IV = 6, bytes(16)


def encrypt(uid: str, number: int, value: bytes, data: bytes) -> bytes:
    """Return the part with this number of an Encrypt in ten parts (KMIP 1.4 section 4.29)."""
    fields = [
        ttlv.text(Tag.UNIQUE_IDENTIFIER, uid),
        ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, CTR)),
        ttlv.octets(Tag.DATA, data),
        *([ttlv.octets(Tag.CORRELATION_VALUE, value)] if number else [ttlv.octets(Tag.IV_COUNTER_NONCE, IV)]),
        *([ttlv.boolean(Tag.INIT_INDICATOR, value=True)] if number == 0 else []),
        *([ttlv.boolean(Tag.FINAL_INDICATOR, value=True)] if number == 9 else []),
    ]
    return compose.encode_request((1, 4), [compose.Ask(Operation.ENCRYPT, b"".join(fields))])


def data_in(response: Response) -> bytes:
    found = ttlv.find(response.frame, *response.items[0].fields[Tag.RESPONSE_PAYLOAD], Tag.DATA)
    return b"" if found is None else ttlv.read_bytes(response.frame, found)


async def test_a_stream_of_ten_parts_goes_through_two_gateways_in_turn(gateways: list[Gateway]) -> None:
    """The joined answers are equal to the answer to the whole data at once."""
    uid = (await ask(gateways[0], create_key((1, 4)))).items[0].unique_identifiers[0].decode()
    assert (await ask(gateways[0], activate(uid, (1, 4)))).items[0].status == ResultStatus.SUCCESS
    key = key_value(await ask(gateways[0], get_key(uid)))
    parts = [bytes([number]) * 41 for number in range(10)]
    turns = itertools.cycle(gateways)
    said, value = b"", b""
    for number, part in enumerate(parts):
        response = await ask(next(turns), encrypt(uid, number, value, part))
        item = response.items[0]
        assert item.status == ResultStatus.SUCCESS, item.message
        said += data_in(response)
        value = item.correlation_value or b""
        assert number == 9 or value.startswith(b"kgw")

    encryptor = Cipher(algorithms.AES(key), modes.CTR(IV)).encryptor()
    assert said == encryptor.update(b"".join(parts)) + encryptor.finalize()


# Tickets --------------------------------------------------------------------------------------------------------------


async def test_a_ticket_is_valid_through_another_gateway_for_its_client(gateways: list[Gateway]) -> None:
    for _ in MASTERS:
        ticket = ticket_in(await ask(gateways[0], LOGIN))
        assert ticket.startswith(b"kgw")

        item = (await ask(gateways[1], with_ticket(ticket))).items[0]
        assert (item.operation, item.status) == (Operation.LOCATE, ResultStatus.SUCCESS), item.message
        for frame, name in ((with_ticket(ticket), "bob"), (with_ticket(ticket[:-1]), "alice")):
            item = (await ask(gateways[1], frame, name)).items[0]
            assert (item.status, item.reason) == (ResultStatus.OPERATION_FAILED, ResultReason.INVALID_TICKET)
