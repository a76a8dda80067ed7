"""What the tests of the workbench share: certificates, an engine, clients of PyKMIP."""

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from kmip.core.enums import KMIPVersion
from kmip.pie.client import ProxyKmipClient
from kmip_lab.certs import write_development_set
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.keymanager.batch import Engine
from OpenSSL import SSL

from gateway import tls
from lab.tests.talk import VERSIONS, Talk

Start = Callable[..., Awaitable[KeyManager]]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a development set."""
    directory: Path = tmp_path_factory.mktemp("certificates")
    write_development_set(directory)
    return directory


@pytest.fixture(scope="session")
def server_context(certificates: Path) -> SSL.Context:
    """Of a key manager."""
    return tls.server_context(certificates / "kms.pem", certificates / "kms.key", certificates / "kms-clients-ca.pem")


@pytest.fixture
def store() -> Iterator[Store]:
    """An empty store in memory."""
    store = Store()
    yield store
    store.close()


@pytest.fixture
def engine(store: Store) -> Engine:
    """A key manager's inside."""
    return Engine("atlanta-001", store)


@pytest.fixture(params=VERSIONS, ids=lambda version: "{}.{}".format(*version))
def talk(engine: Engine, request: pytest.FixtureRequest) -> Talk:
    """A client of each protocol version."""
    return Talk(engine, request.param)


@pytest.fixture
def modern(engine: Engine) -> Talk:
    """A client of 2.1."""
    return Talk(engine, (2, 1))


@pytest.fixture
def classic(engine: Engine) -> Talk:
    """A client of 1.2."""
    return Talk(engine, (1, 2))


@pytest.fixture
def start(nursery: trio.Nursery, store: Store, server_context: SSL.Context) -> Start:
    """Starts key managers on free ports, which end with the test; takes KeyManager's settings."""

    async def start_one(name: str = "atlanta-001", **settings: object) -> KeyManager:
        key_manager = KeyManager(name, store, context=server_context, **settings)  # type: ignore[arg-type]
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
        return key_manager

    return start_one


def pykmip_client(certificates: Path, port: int, version: KMIPVersion = KMIPVersion.KMIP_1_2) -> ProxyKmipClient:
    """PyKMIP's client, to be opened; it blocks, and belongs into a thread."""
    return ProxyKmipClient(
        hostname="127.0.0.1",
        port=port,
        cert=str(certificates / "gateway-client.pem"),
        key=str(certificates / "gateway-client.key"),
        ca=str(certificates / "kms-ca.pem"),
        config_file=os.devnull,
        kmip_version=version,
    )
