"""Policies through a gateway process: what PyKMIP's client shows, and what reaches the key managers."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from kmip.core import enums
from kmip.pie import objects
from kmip.pie.exceptions import KmipOperationFailure
from kmip_lab.tools.clients import connect
from kmip_lab.tools.requests import create_key

from gateway.kmip import compose, ttlv
from gateway.kmip.messages import ResponseItem, Version
from gateway.kmip.spec import AsynchronousIndicator, ItemType, Operation, ResultReason, ResultStatus, Tag
from gateway.tls import client_context
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_managers,
)

PYKMIP_VERSIONS = list(enums.KMIPVersion)
VERSIONS: list[Version] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)]
NOT_PERMITTED = "is not permitted for this client by the policy of this gateway; ask its operator"


def identity(name: str, policy: str) -> Identity:
    return Identity(name, f'{{ subject_cn = "{name}" }}', shared=False, credential=name, policy=policy)


IDENTITIES = [
    identity("reader", 'allow = "read"'),
    identity("maker", 'refuse = ["destroy", "Revoke"]\nobject_types = ["Symmetric Key"]\nmax_batch_items = 3'),
    identity("tester", 'allow = ["all", "Interop"]'),
    identity("owner", ""),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    certificates = Certificates(tmp_path_factory.mktemp("policy"))
    with ExitStack() as running:
        ports = running.enter_context(running_key_managers(certificates))
        yield running.enter_context(running_gateway(certificates, GatewaySettings(ports, IDENTITIES)))


def sent(gateway: Gateway) -> float:
    """Return the number of requests that key managers were sent."""
    return gateway.total("kmip_gateway_backend_requests_total")


async def answered(gateway: Gateway, name: str, frame: bytes) -> list[ResponseItem]:
    context = client_context(*gateway.certificates.client(name), gateway.certificates.path("gateway_ca.pem"))
    async with connect(gateway.address, context) as client:
        return (await client.ask(frame)).items


@pytest.mark.parametrize("version", PYKMIP_VERSIONS, ids=lambda version: version.name)
def test_pykmip_shows_that_an_operation_is_not_permitted(gateway: Gateway, version: enums.KMIPVersion) -> None:
    with gateway.client("owner", version) as client:
        client.create(enums.CryptographicAlgorithm.AES, 256)
    before = sent(gateway)
    with gateway.client("reader", version) as client:
        with pytest.raises(KmipOperationFailure) as failure:
            client.create(enums.CryptographicAlgorithm.AES, 256)
        assert str(failure.value) == f"OPERATION_FAILED: PERMISSION_DENIED - Create {NOT_PERMITTED}"
        with pytest.raises(KmipOperationFailure) as failure:
            client.destroy("some-key")
        assert str(failure.value) == f"OPERATION_FAILED: PERMISSION_DENIED - Destroy {NOT_PERMITTED}"
        assert sent(gateway) == before
        assert client.locate() == []  # the connection is kept
    assert sent(gateway) == before + 1


@pytest.mark.parametrize("version", PYKMIP_VERSIONS, ids=lambda version: version.name)
def test_pykmip_shows_that_an_object_type_is_not_permitted(gateway: Gateway, version: enums.KMIPVersion) -> None:
    with gateway.client("maker", version) as client:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256)
        client.register(objects.SymmetricKey(enums.CryptographicAlgorithm.AES, 128, bytes(16)))
        before = sent(gateway)
        with pytest.raises(KmipOperationFailure, match=f"Register of a Secret Data {NOT_PERMITTED}"):
            client.register(objects.SecretData(b"secret", enums.SecretDataType.PASSWORD))
        with pytest.raises(KmipOperationFailure, match=f"Create Key Pair {NOT_PERMITTED}"):
            client.create_key_pair(enums.CryptographicAlgorithm.RSA, 2048)
        assert sent(gateway) == before
        assert len(client.get(uid).value) == 32


def test_pykmip_shows_each_item_of_a_refused_batch(gateway: Gateway) -> None:
    with gateway.client("reader") as client:
        proxy: Any = client.proxy
        items = [
            proxy._build_get_attributes_batch_item("some-key"),
            proxy._build_create_key_pair_batch_item(),
            proxy._build_get_attribute_list_batch_item("some-key"),
        ]
        before = sent(gateway)
        response = proxy._send_and_receive_message(proxy._build_request_message(None, items))
        results = proxy._process_batch_items(response)
        assert sent(gateway) == before
    not_run = "not run: the gateway refused operation 2 of the batch, Create Key Pair; nothing was changed"
    assert [(result.result_reason.value.name, result.result_message.value) for result in results] == [
        ("GENERAL_FAILURE", not_run),
        ("PERMISSION_DENIED", f"Create Key Pair {NOT_PERMITTED}"),
        ("GENERAL_FAILURE", not_run),
    ]


def batch(version: Version, *operations: Operation, header: tuple[bytes, ...] = ()) -> bytes:
    """Return a batch: Create makes an AES key, and all other operations are about the ID Placeholder."""
    frame_items = []
    for index, operation in enumerate(operations):
        payload = _create_payload(version) if operation is Operation.CREATE else b""
        frame_items.append(compose.Ask(operation, payload, bytes([index])))
    return compose.encode_request(version, frame_items, header=header)


def _create_payload(version: Version) -> bytes:
    frame = create_key(version)
    head = ttlv.HEAD.pack(ttlv.word(Tag.OBJECT_TYPE, ItemType.ENUMERATION), 4)
    return frame[frame.index(head) :]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
async def test_a_batch_on_the_id_placeholder_runs_whole_or_not_at_all(gateway: Gateway, version: Version) -> None:
    made = await answered(gateway, "maker", batch(version, Operation.CREATE, Operation.ACTIVATE, Operation.GET))
    assert [item.status for item in made] == [ResultStatus.SUCCESS] * 3
    before = sent(gateway)

    refused = await answered(gateway, "maker", batch(version, Operation.CREATE, Operation.DESTROY))

    assert sent(gateway) == before
    assert [item.operation for item in refused] == [Operation.CREATE, Operation.DESTROY]
    assert [item.unique_batch_item_id for item in refused] == [b"\0", b"\1"]
    assert [item.status for item in refused] == [ResultStatus.OPERATION_FAILED] * 2
    assert [item.reason for item in refused] == [ResultReason.GENERAL_FAILURE, ResultReason.PERMISSION_DENIED]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
async def test_an_asynchronous_or_continuing_batch_is_refused_at_once(gateway: Gateway, version: Version) -> None:
    indicator = (
        ttlv.enumeration(Tag.ASYNCHRONOUS_INDICATOR, AsynchronousIndicator.MANDATORY)
        if version >= (2, 0)
        else ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True)
    )
    header = (
        indicator,
        ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 1),
        ttlv.boolean(Tag.BATCH_ORDER_OPTION, value=False),
    )
    items = await answered(gateway, "maker", batch(version, Operation.REVOKE, Operation.GET, header=header))
    assert [item.status for item in items] == [ResultStatus.OPERATION_FAILED] * 2
    assert [item.asynchronous_correlation_value for item in items] == [None, None]
    assert [item.reason for item in items] == [ResultReason.PERMISSION_DENIED, ResultReason.GENERAL_FAILURE]


async def test_a_batch_longer_than_the_policy_allows_is_refused(gateway: Gateway) -> None:
    items = await answered(gateway, "maker", batch((1, 4), *[Operation.GET] * 4))
    message = "the batch has 4 operations, and this client may send 3 in one request; send smaller batches"
    assert [(item.reason, item.message) for item in items] == [(ResultReason.PERMISSION_DENIED, message)] * 4


async def test_interop_reaches_the_key_manager_of_a_test_set_up_only(gateway: Gateway) -> None:
    before = sent(gateway)
    (refused,) = await answered(gateway, "owner", batch((2, 1), Operation.INTEROP))
    assert (refused.reason, sent(gateway)) == (ResultReason.OPERATION_NOT_SUPPORTED, before)
    await answered(gateway, "tester", batch((2, 1), Operation.INTEROP))
    assert sent(gateway) == before + 1


async def test_refusals_are_counted_and_logged_by_identity(gateway: Gateway) -> None:
    family = "kmip_gateway_policy_refusals_total"
    labels = {"identity": "reader", "operation": "Unknown"}
    unknown = gateway.total(family, **labels)
    vendor = compose.encode_request((1, 4), [compose.Ask(0x80000001, ttlv.enumeration(Tag.OBJECT_TYPE, 7))])
    for _ in range(20):
        await answered(gateway, "reader", vendor)
    assert gateway.total(family, **labels) == unknown + 20
    with trio.fail_after(20):  # a second has one line for each reason and identity: perhaps that of an earlier test
        while not (lines := [line for line in gateway.log.read_text().splitlines() if "0x80000001" in line]):
            await answered(gateway, "reader", vendor)
            await trio.sleep(0.1)
    assert len(lines) < 10
    assert "request refused" in lines[0]
    assert "identity=reader" in lines[0]
    assert "reason=not_permitted" in lines[0]
