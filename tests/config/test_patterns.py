"""Patterns of identity rules: one rule that matches all clients of another, and never a false alarm."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.patterns import covers, fits, lower_domain, matches_all_of

TEXTS = st.text(alphabet="abA.@*?[]!-", min_size=1, max_size=8)
VALUES = st.text(alphabet="abA.@-", min_size=1, max_size=8)
KEYS = ["subject_cn", "san_dns", "san_email", "san_uri", "issuer"]


@pytest.mark.parametrize("key", KEYS)
def test_what_fits_a_covered_pattern_fits_the_general_one(key: str) -> None:
    @given(general=TEXTS, special=TEXTS, values=st.lists(VALUES, min_size=1, max_size=20))
    @settings(max_examples=600, deadline=None)
    def check(general: str, special: str, values: list[str]) -> None:
        if covers(key, general, special):
            for value in [*values, special]:
                held = {"san_dns": value.lower(), "san_email": lower_domain(value)}.get(key, value)
                assert not fits(key, held, special) or fits(key, held, general), value

    check()


@given(
    general=st.ip_addresses(v=4), general_bits=st.integers(0, 32), special=st.integers(0, 255), bits=st.integers(24, 32)
)
def test_a_network_covers_the_networks_in_it(general: object, general_bits: int, special: int, bits: int) -> None:
    one = ipaddress.ip_network(f"{general}/{general_bits}", strict=False)
    other = ipaddress.ip_network(f"{one.network_address}/{bits}", strict=False)
    assert covers("san_ip", str(one), str(other)) is (bits >= general_bits)
    assert not covers("san_ip", str(one), f"2001:db8::{special:x}")
    assert not covers("san_ip", "::/0", str(one))


@pytest.mark.parametrize(
    ("key", "general", "special", "expected"),
    [
        ("subject_cn", "*", "anything at all", True),
        ("subject_cn", "*", "app-[12]", False),  # true, but without a simple proof
        ("subject_cn", "*", "app-*", True),
        ("subject_cn", "app-*", "app-1", True),
        ("subject_cn", "app-*", "app-web-*", True),
        ("subject_cn", "app-?", "app-*", False),
        ("subject_cn", "app-?", "app-?", True),
        ("subject_cn", "app-?", "app-1", True),
        ("subject_cn", "app-[0-9]", "app-7", True),
        ("subject_cn", "app-*", "web-*", False),
        ("subject_cn", "app-*", "*", False),
        ("subject_cn", "*a*", "[ab]", False),
        ("san_dns", "*.example.com", "WEB.example.com", True),
        ("san_dns", "*.example.com", "a.b.example.com", False),
        ("san_dns", "*", "*.example.com", False),
        ("san_dns", "*.*.com", "*.example.com", True),
        ("san_dns", "*.EXAMPLE.com", "web-*.example.com", True),
        ("san_email", "*@example.com", "backup@Example.com", True),
        ("san_email", "*@example.com", "backup-*@example.com", True),
        ("san_email", "*@*.example.com", "a@b.c.example.com", False),
        ("san_email", "*", "*@example.com", True),
        ("san_uri", "spiffe://example.com/*", "spiffe://example.com/backup", True),
        ("issuer", "*O=Example", "CN=Apps CA,O=Example", True),
        ("fingerprint_sha256", "ab" * 32, "cd" * 32, False),
        ("fingerprint_sha256", "ab" * 32, "ab" * 32, True),
        ("san_ip", "10.0.0.0/8", "10.1.2.3", True),
        ("san_ip", "10.1.2.3", "10.0.0.0/8", False),
    ],
)
def test_a_pattern_covers_another(key: str, general: str, special: str, expected: bool) -> None:
    assert covers(key, general, special) is expected


@pytest.mark.parametrize(
    ("general", "special", "expected"),
    [
        ({"subject_cn": ["app-1"]}, {"subject_cn": ["app-1"]}, True),
        ({"subject_cn": ["app-*"]}, {"subject_cn": ["app-1", "app-2"]}, True),
        ({"subject_cn": ["app-*"]}, {"subject_cn": ["app-1", "web-1"]}, False),
        ({"subject_cn": ["app-*"]}, {"subject_cn": ["app-1"], "issuer": ["CN=CA"]}, True),
        ({"subject_cn": ["app-*"], "issuer": ["CN=CA"]}, {"subject_cn": ["app-1"]}, False),
        ({"subject_cn": ["app-*", "web-*"]}, {"subject_cn": ["web-1", "app-1"]}, True),
        ({"subject_cn": ["*"]}, {"san_dns": ["a.example.com"]}, False),  # a certificate may have no common name
    ],
)
def test_every_key_of_the_general_rule_must_be_in_the_other(
    general: dict[str, list[str]], special: dict[str, list[str]], expected: bool
) -> None:
    assert matches_all_of(general, special) is expected
