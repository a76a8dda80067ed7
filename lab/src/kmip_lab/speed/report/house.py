"""The programs of the experiment: two master key managers, two that stand by, and two gateways before them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import Address
from kmip_lab.certs import write_development_set
from kmip_lab.keymanager.roles import Roles, write_roles
from kmip_lab.programs import free_address, program
from kmip_lab.speed.report.cases import Case
from kmip_lab.speed.target import Target

MASTERS: Final = ("atlanta-001", "london-001")

#: All else is default: backends are taken in turn, and Discover Versions is answered by the gateway.
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

[admin]
bind = "{admin}"

[health]
expect_text = "ServerType=master"

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
    """Where everything listens; ``gateways`` and their ``admins`` by the number of masters behind them."""

    directory: Path
    key_managers: dict[str, Address]
    gateways: dict[int, Address]
    admins: dict[int, Address]

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
async def house(directory: Path, handshake_cost: float, operation_cost: float, roles: Roles) -> AsyncIterator[House]:
    """All programs, ready, for the length of a block. Costs are in seconds; ``roles`` say how changes travel."""
    write_development_set(directory, force=True)
    write_roles(directory, roles)
    gateways, admins = ({masters: free_address() for masters in (1, 2)} for _ in range(2))
    place = House(directory, {name: free_address() for name in roles}, gateways, admins)
    options = [
        *("--certificate", str(directory / "kms.pem"), "--private-key", str(directory / "kms.key")),
        *("--client-ca", str(directory / "kms-clients-ca.pem"), "--cluster", str(directory)),
        *("--handshake-cost", str(handshake_cost), "--operation-cost", str(operation_cost)),
        *("--cost", f"CreateRSA={operation_cost}"),  # named: key pairs are then made beforehand
    ]
    async with AsyncExitStack() as stack:
        for name, address in place.key_managers.items():
            key_manager = program(["keymanager", "--name", name, "--bind", str(address), *options], [address])
            await stack.enter_async_context(key_manager)
        for masters, names in ((1, MASTERS[:1]), (2, tuple(roles))):
            command = ["run", str(_configure(place, masters, names))]
            await stack.enter_async_context(program(command, [place.gateways[masters], place.admins[masters]]))
        yield place


def _configure(place: House, masters: int, names: Sequence[str]) -> Path:
    """A gateway's configuration, with the key managers behind it."""
    backends = (_BACKEND.format(name=name, address=place.key_managers[name]) for name in names)
    path = place.directory / f"gateway-{masters}.toml"
    text = _GATEWAY.format(listen=place.gateways[masters], admin=place.admins[masters])
    path.write_text(text + "".join(backends))
    return path
