"""Single settings: addresses, host names, fingerprints."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import (
    Address,
    load,
)
from tests.kit.config_files import (
    PIN,
    changed,
    mistakes_in,
    write,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:5696", Address("localhost", 5696)),
        ("kms_1.example.com.:1", Address("kms_1.example.com.", 1)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),  # noqa: S104 - nothing is bound here
        ("[::1]:5696", Address("::1", 5696)),
        ("[2001:DB8:0::1]:5696", Address("2001:db8::1", 5696)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ('"Gateway.Example.com."', ("gateway.example.com",)),
        ('["gw-1", "192.0.2.7", "gw-1"]', ("gw-1", "192.0.2.7")),
        ("[]", ()),
    ],
)
def test_admin_hosts_are_one_name_or_a_list(folder: Path, hosts: str, expected: tuple[str, ...]) -> None:
    config = load(write(folder, changed("[admin]\n", f"[admin]\nhosts = {hosts}\n")))
    assert config.admin.hosts == expected


def test_a_fingerprint_may_be_written_as_openssl_prints_it(folder: Path) -> None:
    """That is in capital letters, with colons; or the whole line."""
    digits = ":".join(["AB"] * 32)
    for printed in (digits, f"sha256 Fingerprint={digits}", f"SHA256 Fingerprint={digits}"):
        config = load(write(folder, changed('ca = "kms-ca.pem"', f'pinned_sha256 = "{printed}"')))
        assert (config.backends[0].ca, config.backends[0].pinned_sha256) == (None, (PIN,))


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        (
            'allow = ["Destory"]',
            'allow: has "Destory", which is no operation and no group of them; did you mean "destroy" or "Destroy"?',
        ),
        (
            'refuse = "CREATE"',
            'refuse: has "CREATE", which is no operation and no group of them; did you mean "create" or "Create"?',
        ),
        (
            'refuse = "createkeypair"',
            'refuse: has "createkeypair", which is no operation and no group of them; did you mean "Create Key Pair"?',
        ),
        (
            'allow = "frobnicate"',
            (
                'allow: has "frobnicate", which is no operation and no group of them; give names of the specification'
                ' such as "Create Key Pair", or read, use, create, manage, destroy'
            ),
        ),
        ("allow = []", "allow: is empty; give at least one value, or leave the line out"),
        ("allow = 7", "allow: must be text; put it in quotes"),
        (
            'allow = ["read", "Put"]',
            'allow: has "Put", which the gateway never forwards; leave it out (see docs/security.md)',
        ),
        (
            'allow = ["Get"]\nrefuse = ["Get"]',
            'refuse: has "Get", which allow has, too; leave it out of one of them',
        ),
        (
            'allow = ["read", "Destroy"]\nrefuse = "destroy"',
            'refuse: has "destroy", in which "Destroy" of allow is; leave one of them out',
        ),
        (
            'object_types = "symmetric key"',
            'object_types: has "symmetric key", which is no object type; did you mean "Symmetric Key"?',
        ),
        ("max_batch_items = -1", "max_batch_items: -1 is too little; give at least 0"),
        (
            "max_batch_items = 1001",
            (
                "max_batch_items: 1001 has no effect, because limits.max_batch_items = 1000 refuses such a batch"
                " before; lower it, or raise that limit"
            ),
        ),
    ],
)
def test_mistakes_in_a_policy_are_told(folder: Path, line: str, mistake: str) -> None:
    text = changed("shared = true", f"shared = true\n{line}")
    assert mistakes_in(folder, text) == [f'identities["everyone"].{mistake}']
