"""``check`` builds what ``run`` builds, and reports every mistake of it."""

from pathlib import Path

import pytest

from gateway.build_check import build_mistakes
from gateway.config import load
from tests.kit.config_files import SECOND_IDENTITY, SMALL, changed, put_certificates, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_certificates(tmp_path, SMALL + SECOND_IDENTITY)
    return tmp_path


def test_a_sound_configuration_has_no_mistakes_and_writes_no_file(folder: Path) -> None:
    config = load(write(folder, SMALL + SECOND_IDENTITY))
    before = sorted(folder.iterdir())
    assert build_mistakes(config) == []
    assert sorted(folder.iterdir()) == before


def test_every_file_that_has_gone_is_reported_once(folder: Path) -> None:
    token = folder / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    text = changed('"127.0.0.1:9696"', '"127.0.0.1:9696"\ntoken_file = "token"') + SECOND_IDENTITY
    config = load(write(folder, text))
    for name in ("server.key", "second.key", "gateway-client.pem", "token"):
        (folder / name).unlink()
    found = build_mistakes(config)
    assert [each.partition(":")[0] for each in found] == [
        'listeners["kmip"].certificate',
        'identities["everyone"].certificate',
        'identities["second"].certificate',
        "admin.token_file",
    ]
