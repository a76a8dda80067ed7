"""Clusters of key managers in the test's own process, and requests to them without TLS."""

from collections.abc import Awaitable, Callable

import trio
from kmip_lab.keymanager import KeyManager

from gateway.kmip import ttlv
from gateway.kmip.compose import Ask, encode_request
from gateway.kmip.decode import decode_response
from gateway.kmip.spec import Operation, Tag
from lab.tests.kit.engine_client import OperationResult, contact, creation, uid_of

VERSION = (1, 4)
CLUSTER_INFO = 0x420134

Cluster = dict[str, KeyManager]
#: The fixture ``start_cluster``: starts the key managers of these roles.
StartCluster = Callable[..., Awaitable[Cluster]]


async def ask(key_manager: KeyManager, operation: int, *items: bytes) -> OperationResult:
    """Execute an operation as the client alice, with the costs and the replication of the key manager."""
    return await _ask(key_manager, Ask(operation, b"".join(items)))


async def create(key_manager: KeyManager) -> OperationResult:
    """Create an AES key."""
    return await _ask(key_manager, creation(VERSION))


async def get(key_manager: KeyManager, made: OperationResult) -> OperationResult:
    """Get the object that an earlier operation has made."""
    return await ask(key_manager, Operation.GET, uid_of(made))


async def set_contact(key_manager: KeyManager, made: OperationResult, text: str) -> OperationResult:
    """Add Contact Information to an object."""
    return await ask(key_manager, Operation.ADD_ATTRIBUTE, uid_of(made), contact(text).item(VERSION))


async def cluster_info(key_manager: KeyManager) -> str:
    """Return the Cluster Info that Query returns."""
    answer = await ask(key_manager, Operation.QUERY, ttlv.enumeration(Tag.QUERY_FUNCTION, 3))
    information = answer.payload.structure(Tag.SERVER_INFORMATION)
    assert information is not None
    return information.text(CLUSTER_INFO) or ""


def has(key_manager: KeyManager, made: OperationResult) -> bool:
    """Return whether the object is in the key manager's store."""
    return key_manager.engine.store.get(made.uid) is not None


async def until_in_step(key_manager: KeyManager, replicas: int) -> None:
    """Wait until this number of replicas is in step with a master."""
    replication = key_manager.replication
    assert replication is not None
    await until(lambda: len(replication.in_step) >= replicas)


async def until(holds: Callable[[], bool]) -> None:
    """Wait, in virtual time, until the condition holds."""
    while not holds():  # noqa: ASYNC110 - virtual
        await trio.sleep(0.01)


async def _ask(key_manager: KeyManager, ask: Ask) -> OperationResult:
    answer = await key_manager.ask(encode_request(VERSION, [ask]), "alice")
    return OperationResult(decode_response(answer).items[0], VERSION)
