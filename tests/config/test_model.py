"""Tables: defaults, frozen values, and rules that match one client or many."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config import (
    IdentityConfig,
    LogConfig,
    MatchConfig,
    load,
    matches_many,
    summary,
)
from tests.kit.config_files import (
    PIN,
    SMALL,
    changed,
    write,
)


def test_the_default_server_name_is_the_host_of_the_address(folder: Path) -> None:
    text = changed('"127.0.0.1:15696"', '"kms.example.com:5696"').replace('server_name = "localhost"', "")
    assert load(write(folder, text)).backends[0].server_name == "kms.example.com"


def test_proxy_protocol_and_limits_per_address_are_read(folder: Path) -> None:
    text = (
        SMALL.replace('tls_policy = "modern"', 'proxy_protocol = true\nproxy_from = ["10.0.0.0/8", "2001:DB8::1"]')
        + "\n[per_address]\nmax_clients = 7\nipv6_prefix = 48\n"
    )
    config = load(write(folder, text))
    assert config.listeners[0].proxy_from == ("10.0.0.0/8", "2001:db8::1")
    assert (config.per_address.max_clients, config.per_address.ipv6_prefix) == (7, 48)
    assert "behind PROXY protocol from 10.0.0.0/8, 2001:db8::1" in "\n".join(summary(config))


def test_match_is_read_in_the_form_that_is_compared(folder: Path) -> None:
    match = f"""{{ san_dns = ["a.example", "b.example"], san_ip = ["10.1.0.0/16", "::0:1"], issuer = "CN=CA*",
        fingerprint_sha256 = "{PIN.upper()}" }}""".replace("\n", " ")
    config = load(write(folder, changed('{ subject_cn = "*" }', match)))
    assert config.identities[0].match == MatchConfig(
        san_dns=("a.example", "b.example"), san_ip=("10.1.0.0/16", "::1"), issuer=("CN=CA*",), fingerprint_sha256=(PIN,)
    )


def test_tables_are_frozen(folder: Path) -> None:
    config = load(write(folder, SMALL))
    with pytest.raises(ValidationError, match="frozen"):
        config.log = LogConfig(level="debug")
    with pytest.raises(ValidationError, match="frozen"):
        config.listeners[0].max_clients = 1
    with pytest.raises(AttributeError):
        config.admin.bind.port = 1  # type: ignore[misc]
    assert {config: "can be a key"}[load(write(folder, SMALL))]


SINGLE: Final = [
    MatchConfig(subject_cn=("app-1",)),
    MatchConfig(san_dns=("app-1.example.com",)),
    MatchConfig(san_email=("app@example.com",)),
    MatchConfig(san_uri=("spiffe://example.com/app",)),
    MatchConfig(san_ip=("10.1.2.3",)),
    MatchConfig(san_ip=("10.1.2.3/32",)),
    MatchConfig(san_ip=("2001:db8::1/128",)),
    MatchConfig(fingerprint_sha256=(PIN,)),
    MatchConfig(subject_cn=("app-1",), issuer=("CN=*",)),
    MatchConfig(subject_cn=("*",), fingerprint_sha256=(PIN,)),
    MatchConfig(subject_cn=("a", "b"), san_dns=("app-1.example.com",)),
    MatchConfig(subject_cn=("app-1", "app-1")),
]


MANY: Final = [
    (MatchConfig(subject_cn=("*",)), "subject_cn has a wildcard"),
    (MatchConfig(subject_cn=("app-?",)), "subject_cn has a wildcard"),
    (MatchConfig(subject_cn=("app-[12]",)), "subject_cn has a wildcard"),
    (MatchConfig(san_dns=("*.example.com",)), "san_dns has a wildcard"),
    (MatchConfig(san_email=("*@example.com",)), "san_email has a wildcard"),
    (MatchConfig(san_uri=("spiffe://*",)), "san_uri has a wildcard"),
    (MatchConfig(subject_cn=("a", "b")), "subject_cn has 2 values"),
    (MatchConfig(fingerprint_sha256=(PIN, "cd" * 32)), "fingerprint_sha256 has 2 values"),
    (MatchConfig(san_ip=("10.1.2.0/31",)), "san_ip is a network"),
    (MatchConfig(san_ip=("2001:db8::/64",)), "san_ip is a network"),
    (MatchConfig(issuer=("CN=CA",)), "issuer alone matches every client that it certifies"),
    (MatchConfig(subject_cn=("a*",), san_ip=("10.0.0.0/8",)), "subject_cn has a wildcard, san_ip is a network"),
    (MatchConfig(subject_cn=("a*",), issuer=("CN=CA",)), "subject_cn has a wildcard"),
]


def make_identity(match: MatchConfig, *, shared: bool) -> IdentityConfig:
    return IdentityConfig(name="x", match=match, shared=shared, certificate=Path("c"), private_key=Path("k"))


KEYS: Final = tuple(MatchConfig.model_fields)


LITERAL: Final = st.text("abc.-", min_size=1)


WIDE: Final = st.one_of(
    st.builds("{}{}".format, LITERAL, st.sampled_from("*?[")),
    st.lists(LITERAL, min_size=2, max_size=4, unique=True),
)


@pytest.mark.parametrize("match", SINGLE, ids=repr)
def test_a_match_with_one_literal_value_matches_one_client(match: MatchConfig) -> None:
    assert not matches_many(match)
    assert not make_identity(match, shared=False).shared
    assert make_identity(match, shared=True).shared


@pytest.mark.parametrize(("match", "why"), MANY, ids=repr)
def test_a_match_for_many_clients_requires_shared(match: MatchConfig, why: str) -> None:
    assert matches_many(match)
    assert make_identity(match, shared=True).shared
    with pytest.raises(ValidationError, match=re.escape(f"({why})")):
        make_identity(match, shared=False)


@given(st.dictionaries(st.sampled_from(["subject_cn", "san_dns", "san_email", "san_uri", "issuer"]), WIDE, min_size=1))
def test_any_combination_of_wide_keys_matches_many_clients(match: dict[str, Any]) -> None:
    assert matches_many(MatchConfig.model_validate(match))


@given(
    st.dictionaries(st.sampled_from(["subject_cn", "san_dns", "issuer"]), st.one_of(WIDE, LITERAL)),
    st.sampled_from(["san_email", "san_uri"]),
    LITERAL,
)
def test_one_literal_key_limits_any_match_to_one_client(match: dict[str, Any], key: str, value: str) -> None:
    assert not matches_many(MatchConfig.model_validate(match | {key: value}))
