"""Fixtures of the key manager's tests: clusters."""

from pathlib import Path

import pytest
import trio
from kmip_lab.keymanager import KeyManager, Member, Replication, Role, write_roles
from OpenSSL import SSL

from lab.tests.kit.clusters import Cluster, StartCluster, until_in_step


@pytest.fixture
def start_cluster(nursery: trio.Nursery, tmp_path: Path, server_context: SSL.Context) -> StartCluster:
    """Return a function that starts the key managers of a cluster, and waits until all replicas are in step."""

    async def start(roles: dict[str, Member], **settings: object) -> Cluster:
        write_roles(tmp_path, roles)
        cluster = {}
        for name in roles:
            replication = Replication(tmp_path, name)
            cluster[name] = KeyManager(
                name,
                replication.store,
                context=server_context,
                replication=replication,
                **settings,  # type: ignore[arg-type]
            )
            await nursery.start(cluster[name].serve, ("127.0.0.1", 0))
        for name, member in roles.items():
            if member.role is Role.MASTER:
                await until_in_step(cluster[name], len(roles) - 1)
        return cluster

    return start
