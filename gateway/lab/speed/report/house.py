"""The programs of the experiment: two master key managers, two that stand by, and two gateways before them."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import Address
from gateway.lab.certs import write_development_set
from gateway.lab.programs import free_address, program
from gateway.lab.speed.report.cases import Case
from gateway.lab.speed.target import Target

#: The note's "2+2": each master with its synchronous partner.
MASTERS: Final = ("atlanta-001", "london-001")
STANDBYS: Final = ("atlanta-002", "london-002")

_GATEWAY: Final = """
[[listeners]]
name = "kmip"
bind = "{listen}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"

[[identities]]
name = "everyone"
match = {{ subject_cn = "*" }}
shared = true
certificate = "gateway-client.pem"
private_key = "gateway-client.key"

[health]
serving_text = "ServerType=master"

[log]
level = "error"
"""
_BACKEND: Final = """
[[backends]]
name = "{name}"
address = "{address}"
ca = "kms-ca.pem"
server_name = "localhost"
"""


@dataclass(frozen=True, slots=True)
class House:
    """Where everything listens; ``gateways`` by the number of masters behind them."""

    directory: Path
    key_managers: dict[str, Address]
    gateways: dict[int, Address]

    def target(self, case: Case) -> Target:
        """What the clients of a case talk to: masters in turn, as a balancer would have them, or a gateway."""
        if case.gateway:
            return self._target((self.gateways[case.servers],), "client", "gateway-ca.pem")
        return self.masters(case.servers)

    def masters(self, count: int = len(MASTERS)) -> Target:
        """So many masters, in turn."""
        addresses = tuple(self.key_managers[name] for name in MASTERS[:count])
        return self._target(addresses, "gateway-client", "kms-ca.pem")

    def _target(self, addresses: tuple[Address, ...], client: str, ca: str) -> Target:
        files = (self.directory / f"{client}.pem", self.directory / f"{client}.key", self.directory / ca)
        return Target(addresses, *files, server_name="localhost")


@asynccontextmanager
async def house(
    directory: Path, handshake_cost: float, operation_cost: float, replication: Sequence[str] = ()
) -> AsyncIterator[House]:
    """All programs, ready, for the length of a block; costs in seconds, ``replication`` are further options."""
    write_development_set(directory, force=True)
    names = [*MASTERS, *STANDBYS]
    place = House(directory, {name: free_address() for name in names}, {1: free_address(), 2: free_address()})
    (directory / "faults.json").write_text(json.dumps({name: [{"fault": "standby"}] for name in STANDBYS}))
    key_managers = [
        "keymanager",
        *(word for name in names for word in ("--name", name, "--bind", str(place.key_managers[name]))),
        *("--certificate", str(directory / "kms.pem"), "--private-key", str(directory / "kms.key")),
        *("--client-ca", str(directory / "kms-clients-ca.pem"), "--same-key-pairs"),
        *("--handshake-cost", str(handshake_cost), "--operation-cost", str(operation_cost)),
        *("--faults", str(directory / "faults.json")),
        *replication,
    ]
    one = _configure(place, 1, MASTERS[:1])
    two = _configure(place, 2, names)
    async with (
        program(key_managers, list(place.key_managers.values())),
        program(["run", str(one)], [place.gateways[1]]),
        program(["run", str(two)], [place.gateways[2]]),
    ):
        yield place


def _configure(place: House, masters: int, names: Sequence[str]) -> Path:
    backends = (_BACKEND.format(name=name, address=place.key_managers[name]) for name in names)
    path = place.directory / f"gateway-{masters}.toml"
    path.write_text(_GATEWAY.format(listen=place.gateways[masters]) + "".join(backends))
    return path
