"""The options of the server and of the number of clients."""

import click
import pytest
from click.testing import CliRunner
from kmip_lab.speed.options import clients_option, target_of

from gateway.errors import ConfigError


@click.command()
@clients_option("1")
def numbers(clients: list[int]) -> None:
    """Print the numbers of clients."""
    click.echo(clients)


@pytest.mark.parametrize(("text", "printed"), [("5", "[5]"), ("1-3", "[1, 2, 3]"), ("1-2, 4", "[1, 2, 4]")])
def test_numbers_of_clients_are_ranges_and_lists(text: str, printed: str) -> None:
    assert CliRunner().invoke(numbers, [f"--clients={text}"]).stdout.strip() == printed


@pytest.mark.parametrize("text", ["0", "3-1", "1001", "many", ""])
def test_other_numbers_of_clients_are_mistakes(text: str) -> None:
    assert CliRunner().invoke(numbers, [f"--clients={text}"]).exit_code == 2


def test_every_option_that_is_missing_is_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        target_of(None, no_discover=False)
    assert [mistake.partition(" ")[0] for mistake in caught.value.mistakes] == [
        "--address",
        "--certificate",
        "--private-key",
        "--ca",
    ]
