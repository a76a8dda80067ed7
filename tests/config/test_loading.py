"""Loading: a file becomes a Config, or a list of mistakes."""

import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import (
    Address,
    DeadlinesConfig,
    LimitsConfig,
    LogConfig,
    PoolConfig,
    load,
)
from gateway.config.loading import examine
from gateway.errors import ConfigError
from tests.kit.config_files import (
    SECOND_BACKEND,
    SMALL,
    changed,
    write,
)


def test_settings_that_are_left_out_have_their_defaults(folder: Path) -> None:
    config = load(write(folder, SMALL))

    (listener,) = config.listeners
    assert (listener.name, listener.bind) == ("kmip", Address("127.0.0.1", 5696))
    assert (listener.tls_policy, listener.max_clients, listener.resumption_lifetime) == ("modern", 10_000, 3600)
    (backend,) = config.backends
    assert (backend.name, str(backend.address)) == ("atlanta-001", "127.0.0.1:15696")
    assert (backend.server_name, backend.pinned_sha256) == ("localhost", ())
    assert (backend.max_sessions, backend.probe, backend.addresses) == (64, "discover-versions", "auto")
    (identity,) = config.identities
    assert (identity.match.subject_cn, identity.shared) == (("*",), True)
    assert (config.pool, config.deadlines) == (PoolConfig(), DeadlinesConfig())
    assert (config.limits, config.log) == (LimitsConfig(), LogConfig())


def test_relative_paths_begin_in_the_directory_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are absolute after load, from wherever the gateway was started; absolute paths stay."""
    write(folder, changed('"kms-ca.pem"', f'"{folder}/kms-ca.pem"'))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")

    config = load(Path("../gateway.toml"))

    listener, backend = config.listeners[0], config.backends[0]
    assert listener.certificate.is_absolute()
    assert listener.private_key.samefile(folder / "server.key")
    assert listener.client_ca.samefile(folder / "clients-ca.pem")
    assert backend.ca == folder / "kms-ca.pem"


def test_sections_with_defaults_may_be_left_out(folder: Path) -> None:
    config = load(write(folder, changed('[admin]\nbind = "127.0.0.1:9696"\n', "")))
    assert config.admin.bind == Address("127.0.0.1", 9696)


def test_a_byte_order_mark_is_skipped(folder: Path) -> None:
    path = folder / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load(path).listeners[0].name == "kmip"


TOML_VALUES: Final = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
)


@settings(deadline=None)  # it reads files
@given(st.data())
def test_any_value_anywhere_gives_a_config_or_a_config_error(kept_folder: Path, data: st.DataObject) -> None:
    """No value in a file causes any other exception."""
    document = tomllib.loads(SMALL + SECOND_BACKEND)
    where: Any = document
    while isinstance(where, dict | list) and where:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = data.draw(TOML_VALUES)
    if isinstance(where, dict) and data.draw(st.booleans()):
        where[data.draw(st.text())] = data.draw(TOML_VALUES)

    mistakes = ["taken"]
    try:
        examine(document, kept_folder / "gateway.toml")
    except ConfigError as refused:
        mistakes = refused.mistakes

    assert mistakes
    assert all(mistake.isprintable() for mistake in mistakes)
