"""The files in config/recipes, as `kmip-gateway check` sees them, with real certificates."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from kmip_lab.certs import Authority

from gateway.config import Config, load
from gateway.explain import explain

RECIPES: Final = Path(__file__).parents[2] / "config" / "recipes"
NAMES: Final = sorted(path.stem for path in RECIPES.glob("*.toml"))
#: Seconds after which a client gives up, in which the gateway must have answered, by a second key manager if need be.
CLIENT_TIMEOUTS: Final = {"mysql": 5, "mongodb": 5, "ceph": 10, "barbican": 30, "swift": 30}


class Recipe:
    """A recipe in a directory with the certificates that it names."""

    def __init__(self, name: str, directory: Path) -> None:
        self.path = directory / f"{name}.toml"
        self.path.write_text((RECIPES / f"{name}.toml").read_text())
        self.text = self.path.read_text()
        settings = tomllib.loads(self.text)
        (directory / "certs").mkdir()
        self.authority = Authority("Clients CA")
        key_managers = Authority("Key Manager CA")
        (listener,) = settings["listeners"]
        (directory / listener["client_ca"]).write_bytes(self.authority.certificate_pem)
        server = Authority("Gateway CA").issue_server("gateway", ["gateway.example.com"])
        server.write(directory / listener["certificate"], directory / listener["private_key"])
        for backend in settings["backends"]:
            (directory / backend["ca"]).write_bytes(key_managers.certificate_pem)
        for identity in settings["identities"]:
            credential = key_managers.issue_client(identity["name"])
            credential.write(directory / identity["certificate"], directory / identity["private_key"])
        self.identities: list[dict[str, Any]] = settings["identities"]

    @property
    def config(self) -> Config:
        return load(self.path)

    def check(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "check", *options, str(self.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    return Recipe(request.param, tmp_path)


def test_each_product_of_the_table_has_its_recipe() -> None:
    table = (RECIPES.parents[1] / "tests" / "peers" / "not_tried.md").read_text()
    assert {f"{name}.toml" for name in NAMES} == {
        word.strip("`")
        for line in table.splitlines()
        for word in line.replace(",", " ").split()
        if word.endswith(".toml")
    }


def test_check_finds_neither_mistakes_nor_warnings(recipe: Recipe) -> None:
    checked = recipe.check("--strict")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def identity_of(recipe: Recipe, common_name: str, *dns: str) -> set[str | None]:
    """Return the identity that each listener gives a client with these names."""
    client = recipe.authority.issue_client(common_name, dns=dns)
    chain = x509.load_pem_x509_certificates(client.certificate_pem)
    outcomes = explain(recipe.config, chain).listeners
    return {outcome.identity.name if outcome.identity else None for outcome in outcomes}


def test_a_client_as_described_gets_its_identity_and_no_other_client(recipe: Recipe) -> None:
    for identity in recipe.identities:
        ((kind, pattern),) = identity["match"].items()
        value = pattern.replace("*", "server-1")
        names = (value,) if kind == "subject_cn" else ("mongod", value)
        assert identity_of(recipe, *names) == {identity["name"]}
    assert identity_of(recipe, "somebody", "somebody.example.com") == {None}


@pytest.mark.parametrize("name", CLIENT_TIMEOUTS)
def test_the_gateway_answers_before_the_client_gives_up(name: str, tmp_path: Path) -> None:
    config = Recipe(name, tmp_path).config
    assert config.deadlines.request < CLIENT_TIMEOUTS[name]
    assert config.failover.try_timeout * 2 < config.deadlines.request
    assert config.pool.queue_timeout < config.deadlines.request
    assert config.deadlines.connect * 2 < config.deadlines.request
