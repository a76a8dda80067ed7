"""The programs of the experiment: two master key managers, two standbys, and two gateways before them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import Address
from kmip_lab.certs import DevelopmentSet, write_development_set
from kmip_lab.keymanager.roles import Roles, write_roles
from kmip_lab.report.cases import Case
from kmip_lab.speed.target import Target
from kmip_lab.tools.configurations import MASTERS_ONLY, gateway_toml
from kmip_lab.tools.programs import free_address, gateway_command, key_manager_command, program, wait_until_listening

MASTERS: Final = ("atlanta-001", "london-001")


@dataclass(frozen=True, slots=True)
class Environment:
    """The files and addresses of all programs; ``gateways`` and ``admins`` by the number of masters behind them."""

    files: DevelopmentSet
    key_managers: dict[str, Address]
    gateways: dict[int, Address]
    admins: dict[int, Address]

    def target(self, case: Case) -> Target:
        """Return the target of a case's clients: masters in turn, as behind a balancer, or a gateway."""
        if case.gateway:
            return self._target((self.gateways[case.servers],), "client", "gateway-ca.pem")
        return self.masters(case.servers)

    def masters(self, count: int = len(MASTERS)) -> Target:
        """Return the first ``count`` masters, to be taken in turn."""
        addresses = tuple(self.key_managers[name] for name in MASTERS[:count])
        return self._target(addresses, "gateway-client", "kms-ca.pem")

    def _target(self, addresses: tuple[Address, ...], client: str, ca: str) -> Target:
        return Target(addresses, *self.files.pair(client), self.files.file(ca), server_name="localhost")


@asynccontextmanager
async def environment(
    directory: Path, handshake_cost: float, operation_cost: float, roles: Roles
) -> AsyncIterator[Environment]:
    """Run all programs for the length of a block. Costs are in seconds; ``roles`` say how changes are replicated."""
    files = write_development_set(directory, force=True)
    write_roles(directory, roles)
    gateways, admins = ({masters: free_address() for masters in (1, 2)} for _ in range(2))
    made = Environment(files, {name: free_address() for name in roles}, gateways, admins)
    options = [
        *("--cluster", str(directory)),
        *("--handshake-cost", str(handshake_cost), "--operation-cost", str(operation_cost)),
        *("--cost", f"CreateRSA={operation_cost}"),  # a cost of its own: key pairs are then made beforehand
    ]
    async with AsyncExitStack() as stack:
        for name, address in made.key_managers.items():
            await stack.enter_async_context(program(name, key_manager_command(files, {name: address}, *options)))
        await wait_until_listening(made.key_managers.values())
        for masters, names in ((1, MASTERS[:1]), (2, tuple(roles))):
            backends = {name: made.key_managers[name] for name in names}
            path = files.file(f"gateway-{masters}.toml")
            path.write_text(gateway_toml(gateways[masters], admins[masters], backends, more=MASTERS_ONLY))
            await stack.enter_async_context(program(f"gateway {masters}", gateway_command(path)))
        await wait_until_listening([*gateways.values(), *admins.values()])
        yield made
