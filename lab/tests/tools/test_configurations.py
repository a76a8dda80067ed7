"""The gateway's configuration, read by the gateway's own code."""

from pathlib import Path

import pytest
from kmip_lab.certs import write_development_set
from kmip_lab.tools.configurations import MASTERS_ONLY, gateway_toml

from gateway.config import Address, load


@pytest.mark.parametrize(("client", "more"), [("*", ""), ("client", ""), ("*", MASTERS_ONLY)])
def test_the_gateway_accepts_the_configuration(tmp_path: Path, client: str, more: str) -> None:
    write_development_set(tmp_path)
    backends = {"one": Address("127.0.0.1", 5697), "two": Address("127.0.0.1", 5698)}
    text = gateway_toml(Address("127.0.0.1", 5696), Address("127.0.0.1", 9696), backends, client=client, more=more)
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    assert [backend.name for backend in load(file).backends] == list(backends)
