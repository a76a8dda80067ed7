"""The files in config/ agree with the model, and load."""

import re
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.config import (
    Address,
    Config,
    MatchConfig,
    load,
)
from gateway.config.model import SECTIONS
from tests.kit.config_files import (
    put_certificates,
    write,
)

EXAMPLE_FILES: Final = Path(__file__).parents[2] / "config"


SETTING: Final = re.compile(r"(?P<behind># )?(?P<key>[a-z][a-z0-9_]*) = (?P<value>.*)")


def settings_of(path: Path) -> Iterator[tuple[str, str, Any, bool]]:
    """Yield each setting in a file, also behind "# ": its section, key and value, and True unless it is behind "# "."""
    section = ""
    for row in path.read_text().splitlines():
        if row.startswith("["):
            section = row.strip("[]")
        elif found := SETTING.fullmatch(row):
            value = tomllib.loads(f"value = {found['value']}")["value"]
            yield section, found["key"], value, found["behind"] is None


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a file of config/ into a directory with the files that it names."""

    def copy(name: str) -> Path:
        text = (EXAMPLE_FILES / name).read_text()
        put_certificates(tmp_path, text)
        return write(tmp_path, text)

    return copy


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLE_FILES.glob("*.toml")))
def test_every_file_in_config_loads(place: Callable[[str], Path], name: str) -> None:
    config = load(place(name))
    assert all(backend.server_name for backend in config.backends)


@pytest.mark.parametrize(
    "name", sorted(str(path.relative_to(EXAMPLE_FILES)) for path in EXAMPLE_FILES.glob("*/*.toml"))
)
def test_every_deployments_file_loads_once_its_paths_exist(name: str, tmp_path: Path) -> None:
    text = (EXAMPLE_FILES / name).read_text()
    text = re.sub(r'mark_key_file = ".*"', 'mark_key_file = "mark.key"', text)
    text = re.sub(r'"/(etc/kmip-gateway/|)(\w+)/(\S+)\.(pem|crt|key)"', _beside, text)
    text = re.sub(r'token_file = ".*"', 'token_file = "token"', text)
    put_certificates(tmp_path, text)
    (tmp_path / "token").write_text("ab" * 32)
    (tmp_path / "token").chmod(0o600)
    assert load(write(tmp_path, text)).deadlines.drain > 0


def _beside(path: re.Match[str]) -> str:
    """Return the name of a file beside the configuration, in place of an absolute path."""
    _, folder, name, suffix = path.groups()
    return f'"{folder}-{name}.{suffix.replace("crt", "pem")}"'


def test_the_example_files_are_there() -> None:
    assert {path.name for path in EXAMPLE_FILES.glob("*.toml")} >= {
        "gateway.toml",
        "demo.toml",
        "two-plus-two.toml",
        "legacy.toml",
    }


def test_gateway_toml_has_every_setting_and_no_other() -> None:
    written = [(section, key) for section, key, _, _ in settings_of(EXAMPLE_FILES / "gateway.toml") if key != "match"]
    assert len(written) == len(set(written))
    assert {*written, ("identities", "match")} == {
        (section, key) for section, table in SECTIONS.items() for key in table.model_fields
    }


def test_gateway_toml_has_the_defaults_of_the_model() -> None:
    """Settings with a default stand behind "# ".

    Exceptions are ``ca``, whose default is only for pinned backends, and the files of a fixed credential.
    """
    needed = {("backends", "ca"), ("identities", "certificate"), ("identities", "private_key")}
    for section, key, value, live in settings_of(EXAMPLE_FILES / "gateway.toml"):
        field = SECTIONS[section].model_fields[key]
        if key == "match":
            continue
        assert live == (field.is_required() or (section, key) in needed), f"[{section}] {key}"
        if not live:
            default = str(field.default) if isinstance(field.default, (Address, Path)) else field.default
            assert (tuple(value) if isinstance(value, list) else value) == default, f"[{section}] {key}"


def test_gateway_toml_has_every_key_of_match() -> None:
    matches = [value for _, key, value, _ in settings_of(EXAMPLE_FILES / "gateway.toml") if key == "match"]
    assert {key for match in matches for key in match} == set(MatchConfig.model_fields)
    for match in matches:
        MatchConfig.model_validate(match)


def test_gateway_toml_without_comment_signs_is_the_same_config(place: Callable[[str], Path]) -> None:
    path = place("gateway.toml")
    config = load(path)
    live = re.sub(r"(?m)^# (?!match)(?=[a-z][a-z0-9_]* = )", "", path.read_text())
    assert live != path.read_text()
    assert load(write(path.parent, live)) == config


def test_every_setting_in_gateway_toml_has_a_comment() -> None:
    rows = (EXAMPLE_FILES / "gateway.toml").read_text().splitlines()
    for before, row in pairwise(rows):
        found = SETTING.fullmatch(row)
        if found and found["key"] != "match":
            assert before.startswith("# "), row
            assert not SETTING.fullmatch(before), row


def test_the_demo_has_its_documented_ports(place: Callable[[str], Path]) -> None:
    config: Config = load(place("demo.toml"))
    assert [str(listener.bind) for listener in config.listeners] == ["127.0.0.1:5696"]
    assert {backend.name: str(backend.address) for backend in config.backends} == {
        "atlanta-001": "127.0.0.1:15696",
        "atlanta-002": "127.0.0.1:15697",
        "london-001": "127.0.0.1:15698",
        "london-002": "127.0.0.1:15699",
    }
    assert (config.identities[0].name, config.identities[0].shared) == ("everyone", True)
    assert str(config.admin.bind) == "127.0.0.1:9696"
