"""PyKMIP's server as the judge of identities: the owners that it stores, and the passwords that it reads."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure

from tests.kit.authorities import Ca, write_secret
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    pykmip_client,
    running_gateway,
    running_pykmip_server,
)

HEALTH: Final = Identity("health", '{ subject_cn = "nobody" }', shared=False, credential="health")
MINTED: Final = """
[[identities]]
name = "clients"
match = { subject_cn = "*" }
credential = "minted"
client_issuer = "clients_ca.pem"
issuing_ca = "issuing.pem"
issuing_ca_key = "issuing.key"
"""
PASSWORDS: Final = """
[[identities]]
name = "{name}"
match = {{ subject_cn = "{name}" }}
credential = "password"
certificate = "credential-{name}.pem"
private_key = "credential-{name}.key"
username = "user-of-{name}"
password_file = "password-of-{name}"
"""
#: A plug-in that takes the user from the password, in place of PyKMIP's own, which asks an HTTP service for groups.
BY_PASSWORD: Final = """
import json
from kmip.core import exceptions
from kmip.services.server import auth

class ByPassword:
    def __init__(self, url=None):
        self.passwords = json.load(open(url))

    def authenticate(self, connection_certificate=None, connection_info=None, request_credentials=None):
        for credential in request_credentials or ():
            user, password = credential.credential_value.username, credential.credential_value.password
            if self.passwords.get(user) == password:
                return user, None
        raise exceptions.PermissionDenied("no such user, or another password")

auth.SLUGSConnector = ByPassword
"""


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    certificates = Certificates(tmp_path)
    for name in ("health", "alice", "bob"):
        certificates.credential(name)
    issuing = Ca.make("Issuing CA")
    issuing.write(tmp_path / "issuing")
    trusted = tmp_path / "kms_clients_ca.pem"
    trusted.write_bytes(trusted.read_bytes() + issuing.pem)
    return certificates


def client(gateway: Gateway, name: str) -> ProxyKmipClient:
    return pykmip_client(
        gateway.port,
        *gateway.certificates.client(name),
        gateway.certificates.path("gateway_ca.pem"),
        enums.KMIPVersion.KMIP_1_2,
    )


def each_has_its_own_keys(gateway: Gateway) -> None:
    """Assert that PyKMIP's server gives each client its own keys, again and again, on kept sessions."""
    keys: dict[str, tuple[str, bytes]] = {}
    for name in ("alice", "bob"):
        with client(gateway, name) as it:
            uid = it.create(enums.CryptographicAlgorithm.AES, 256)
            keys[name] = uid, it.get(uid).value
    opened = gateway.total("kmip_gateway_sessions_opened_total")
    for _ in range(5):
        for name, other in (("alice", "bob"), ("bob", "alice")):
            with client(gateway, name) as it:
                assert it.get(keys[name][0]).value == keys[name][1]
                assert it.locate() == [keys[name][0]]
                with pytest.raises(KmipOperationFailure):
                    it.get(keys[other][0])
    assert gateway.total("kmip_gateway_sessions_opened_total") <= opened + 2


def test_pykmip_takes_minted_certificates_for_the_clients(certificates: Certificates) -> None:
    with ExitStack() as running:
        port = running.enter_context(running_pykmip_server(certificates, certificates.path("shared.db")))
        settings = GatewaySettings([port], [HEALTH], extra=MINTED)
        gateway = running.enter_context(running_gateway(certificates, settings))
        each_has_its_own_keys(gateway)
    owners = certificates.path(f"pykmip-{port}.log").read_text()
    assert all(name in owners for name in ("alice", "bob"))


@pytest.fixture
def by_password(certificates: Certificates) -> Iterator[Gateway]:
    passwords = {f"user-of-{name}": f"password {name}" for name in ("alice", "bob")}
    for name in ("alice", "bob"):
        write_secret(certificates.path(f"password-of-{name}"), f"password {name}\n")
    accepted = certificates.path("passwords.json")
    accepted.write_text(json.dumps(passwords))
    with ExitStack() as running:
        port = running.enter_context(
            running_pykmip_server(
                certificates,
                certificates.path("shared.db"),
                before=BY_PASSWORD,
                settings=f"[auth:slugs]\nenabled=True\nurl={accepted}\n",
            )
        )
        rules = "".join(PASSWORDS.format(name=name) for name in ("alice", "bob"))
        yield running.enter_context(running_gateway(certificates, GatewaySettings([port], [HEALTH], extra=rules)))


def test_pykmip_knows_clients_by_their_passwords(by_password: Gateway) -> None:
    each_has_its_own_keys(by_password)
