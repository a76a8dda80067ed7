"""The target of a measurement."""

from pathlib import Path

import pytest
from kmip_lab.certs import DevelopmentSet
from kmip_lab.speed.target import Target

from gateway.config import Address
from gateway.errors import ConfigError


def target(certificate: Path, private_key: Path, ca: Path) -> Target:
    return Target((Address("127.0.0.1", 1),), certificate, private_key, ca)


def test_the_files_make_a_context(certificates: Path) -> None:
    files = DevelopmentSet(certificates)
    assert target(*files.pair("client"), files.file("gateway-ca.pem")).context()


def test_every_file_that_can_not_be_used_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    empty = tmp_path / "empty.pem"
    with pytest.raises(ConfigError) as caught:
        target(empty, empty, empty).context()
    assert [mistake.partition(" ")[0] for mistake in caught.value.mistakes] == ["certificate", "private", "CA"]
