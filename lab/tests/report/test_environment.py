"""The programs of the experiment, and the targets of its cases."""

from pathlib import Path

from kmip_lab.certs import DevelopmentSet
from kmip_lab.report.cases import CASES
from kmip_lab.report.environment import Environment

from gateway.config import Address

MADE = Environment(
    DevelopmentSet(Path("/c")),
    {name: Address("127.0.0.1", port) for port, name in enumerate(("atlanta-001", "london-001", "london-002"), 1)},
    {masters: Address("127.0.0.1", 10 + masters) for masters in (1, 2)},
    {masters: Address("127.0.0.1", 20 + masters) for masters in (1, 2)},
)


def ports(case: str) -> list[int]:
    return [address.port for address in MADE.target(CASES[case]).addresses]


def test_direct_clients_take_the_masters_in_turn() -> None:
    assert ports("single_kept") == [1]
    assert ports("two_fresh") == [1, 2]


def test_clients_of_a_gateway_connect_to_the_gateway_for_so_many_masters() -> None:
    assert (ports("gateway_single"), ports("gateway_two")) == ([11], [12])


def test_clients_show_the_credential_that_the_server_accepts() -> None:
    assert MADE.target(CASES["two_kept"]).certificate.name == "gateway-client.pem"
    assert MADE.target(CASES["gateway_two"]).certificate.name == "client.pem"
