"""Fixtures of the laboratory's tests: certificates, an engine, clients of each version, key managers on the network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from kmip_lab.certs import write_development_set
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.keymanager.engine import Engine
from OpenSSL import SSL

from gateway import tls
from lab.tests.kit.engine_client import VERSIONS, EngineClient
from lab.tests.kit.key_managers import Start


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with certificates for development."""
    directory: Path = tmp_path_factory.mktemp("certificates")
    write_development_set(directory)
    return directory


@pytest.fixture(scope="session")
def server_context(certificates: Path) -> SSL.Context:
    """Return the TLS context of a key manager."""
    return tls.server_context(certificates / "kms.pem", certificates / "kms.key", certificates / "kms-clients-ca.pem")


@pytest.fixture
def store() -> Iterator[Store]:
    """Yield an empty store in memory."""
    store = Store()
    yield store
    store.close()


@pytest.fixture
def engine(store: Store) -> Engine:
    """Return the engine of key manager atlanta-001 on ``store``."""
    return Engine("atlanta-001", store)


@pytest.fixture(params=VERSIONS, ids=lambda version: "{}.{}".format(*version))
def client(engine: Engine, request: pytest.FixtureRequest) -> EngineClient:
    """Return a client of ``engine`` for each protocol version in turn."""
    return EngineClient(engine, request.param)


@pytest.fixture
def client_2_1(engine: Engine) -> EngineClient:
    """Return a client of ``engine`` that speaks 2.1."""
    return EngineClient(engine, (2, 1))


@pytest.fixture
def client_1_2(engine: Engine) -> EngineClient:
    """Return a client of ``engine`` that speaks 1.2."""
    return EngineClient(engine, (1, 2))


@pytest.fixture
def start(nursery: trio.Nursery, store: Store, server_context: SSL.Context) -> Start:
    """Return a function that starts a key manager on a free port, with KeyManager's settings, until the test ends."""

    async def start_key_manager(name: str = "atlanta-001", **settings: object) -> KeyManager:
        key_manager = KeyManager(name, store, context=server_context, **settings)  # type: ignore[arg-type]
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
        return key_manager

    return start_key_manager
