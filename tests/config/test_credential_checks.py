"""Rules between credentials: two clients must never become one client to the key managers."""

from pathlib import Path
from typing import Final

import pytest

from gateway.config import load
from tests.kit.authorities import Ca, common_name
from tests.kit.config_files import changed, mistakes_in, unfolded, write

CLIENTS, OTHERS = Ca.make("Clients CA"), Ca.make("Others CA")
#: The small configuration, whose identity matches a client of its own.
SMALL: Final = changed('subject_cn = "*"', 'subject_cn = "health"').replace("shared = true\n", "")
RULE: Final = """
[[identities]]
name = "{name}"
match = {{ subject_cn = "{name}-*" }}
credential = "minted"
client_issuer = "{issuer}.pem"
issuing_ca = "{ca}.pem"
issuing_ca_key = "{ca}.key"
"""


def minted(name: str, issuer: str, ca: str) -> str:
    """Return a rule with minted credentials."""
    return RULE.format(name=name, issuer=issuer, ca=ca)


@pytest.fixture
def folder(folder: Path) -> Path:
    """A directory with two CAs of clients and three issuing CAs, two of them of one name."""
    CLIENTS.write(folder / "clients")
    OTHERS.write(folder / "others")
    issuing = Ca.make("Issuing CA")
    issuing.write(folder / "issuing")
    Ca.make("Issuing CA").write(folder / "same-name")
    Ca.make("Issuing CA 2", key=issuing.key).write(folder / "same-key")
    Ca.make("Issuing CA 3").write(folder / "third")
    renewed = Ca.make("Clients CA", key=CLIENTS.key)
    (folder / "renewed.pem").write_bytes(renewed.pem)
    issuing.issue(common_name("health"), path=folder / "gateway-client")
    return folder


def own(folder: Path) -> str:
    """Return the small configuration, with a certificate of a CA of its own in its identity."""
    Ca.make("Other").issue(common_name("health"), path=folder / "gateway-client")
    return SMALL


def test_rules_with_issuing_cas_of_their_own_are_accepted(folder: Path) -> None:
    text = own(folder) + minted("one", "clients", "issuing") + minted("two", "others", "third")
    assert [identity.credential for identity in load(write(folder, text)).identities] == ["fixed", "minted", "minted"]


@pytest.mark.parametrize("issuer", ["clients", "renewed"])
def test_rules_for_one_issuer_may_share_an_issuing_ca(folder: Path, issuer: str) -> None:
    load(write(folder, own(folder) + minted("one", "clients", "issuing") + minted("two", issuer, "issuing")))


@pytest.mark.parametrize("ca", ["issuing", "same-name", "same-key"])
def test_an_issuing_ca_of_two_issuers_is_refused(folder: Path, ca: str) -> None:
    text = own(folder) + minted("one", "clients", "issuing") + minted("two", "others", ca)
    assert mistakes_in(folder, text) == unfolded("""
        identities["two"].issuing_ca: is also the issuing CA of identities["one"], or has its name, and client_issuer
            differs: clients of the same name, from two CAs, would be one client to the key managers; give each
            client_issuer an issuing CA of its own, with a name and a key of its own
    """)


def test_a_certificate_of_an_issuing_ca_is_refused(folder: Path) -> None:
    assert mistakes_in(folder, SMALL + minted("one", "clients", "issuing")) == unfolded("""
        identities["everyone"].certificate: was issued by the issuing CA of identities["one"]: a client with the same
            name would be the same client to the key managers; give a certificate of a different CA
    """)


def test_health_checks_need_a_credential_of_the_gateway(folder: Path) -> None:
    text = SMALL[: SMALL.index("[[identities]]")] + minted("one", "clients", "issuing")
    (mistake,) = mistakes_in(folder, text)
    assert mistake.startswith(
        'identities["one"].credential: is "minted" in every identity, and health checks never use'
    )


def test_health_checks_never_use_a_minted_credential(folder: Path) -> None:
    text = own(folder) + minted("one", "clients", "issuing") + '[health]\ncredential = "one"\n'
    assert mistakes_in(folder, text) == unfolded("""
        health.credential: "one" has minted credentials, which are those of its clients; name an identity with a
            certificate of the gateway's own
    """)


def test_a_minted_rule_needs_no_listeners_if_listeners_trust_different_cas(folder: Path) -> None:
    second = '\n[[listeners]]\nname = "second"\nbind = "127.0.0.1:5697"\ncertificate = "server.pem"\n'
    second += 'private_key = "server.key"\nclient_ca = "others.pem"\n'
    text = changed("match = {", 'listeners = "kmip"\nmatch = {', own(folder))
    load(write(folder, text + second + minted("one", "clients", "issuing")))


def test_a_rule_is_not_hidden_by_a_rule_for_another_issuer(folder: Path) -> None:
    every = [
        minted(name, issuer, ca).replace(f"{name}-*", "*")
        for name, issuer, ca in (("one", "clients", "issuing"), ("two", "others", "third"))
    ]
    load(write(folder, own(folder) + "".join(every)))
    hidden = minted("three", "clients", "issuing").replace("three-*", "*")
    (mistake,) = mistakes_in(folder, own(folder) + "".join(every) + hidden)
    assert mistake.startswith('identities["three"].match: never counts, because identities["one"]')
