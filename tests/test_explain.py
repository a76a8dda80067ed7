"""Explanations: the rule that counts, why earlier rules do not, and what a client may do, on each listener."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from kmip_lab.certs import Authority

from gateway import cli
from gateway.config import load
from gateway.explain import explain, read_chain
from gateway.identity import Identities
from tests.kit.authorities import Ca, write_secret
from tests.kit.authorities import common_name as named
from tests.kit.processes import Certificates, GatewaySettings, Identity, free_port, write_config
from tests.kit.revocation import crl_of

PARTNERS = """
[[listeners]]
name = "partners"
bind = "127.0.0.1:{}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "partners_ca.pem"
"""
POLICY = 'allow = ["read", "Create"]\nrefuse = ["Export"]\nobject_types = "Symmetric Key"\nmax_batch_items = 5\n'
READ = (
    "Locate, Check, Get, Get Attributes, Get Attribute List, Obtain Lease, Validate, Query, Poll, Discover Versions,"
    " Login, Logout, Get Constraints, Query Asynchronous Requests, Ping"
)
SHARED = "; all clients of this identity are one client to them"
KMIP = 'listeners = "kmip"\n'


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    it = Certificates(tmp_path_factory.mktemp("explain"))
    it.path("partners_ca.pem").write_bytes(Authority("Partners CA").certificate_pem)
    return it


@pytest.fixture
def config(certificates: Certificates) -> Path:
    identities = [
        Identity("admin", '{ subject_cn = "admin" }', shared=False, policy=KMIP),
        Identity("web", '{ san_dns = "*.web.example.com", subject_cn = "web-*" }', credential="web", policy=KMIP),
        Identity("partner", '{ subject_cn = "app-*" }', credential="partner", policy='listeners = "partners"\n'),
        Identity("apps", '{ subject_cn = "app-*" }', credential="apps", policy=KMIP + POLICY),
        Identity("all", '{ subject_cn = "*" }', credential="all", policy=KMIP),
    ]
    settings = GatewaySettings([free_port()], identities, extra=PARTNERS.format(free_port()))
    return write_config(certificates, settings, 25696, free_port())


def call(*arguments: str | Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli.main, ["check", *(str(argument) for argument in arguments)])
    return result.exit_code, (result.stdout + result.stderr).splitlines()


def test_the_rule_that_counts_and_why_earlier_rules_do_not(certificates: Certificates, config: Path) -> None:
    certificate, _ = certificates.client("app-1", dns=["app-1.example.com"])
    status, said = call("--explain", certificate, config)
    assert status == 0
    facts = said.index("listener kmip on 127.0.0.1:25696:")
    assert said[0].startswith("certificate of CN=app-1, valid from ")
    assert "  san_dns: app-1.example.com" in said[1:facts]
    assert said[facts + 1 :] == [
        "  its certificate is trusted (client_ca = clients_ca.pem)",
        '  identity admin: does not match: subject_cn is "admin", and the certificate has "app-1"',
        '  identity web: does not match: subject_cn is "web-*", and the certificate has "app-1"',
        '  identity partner: does not match: it is for "partners" only',
        "  identity apps: matches",
        "  key managers are shown the certificate of CN=apps in credential-apps.pem" + SHARED,
        "  it may use read, Create, except Export; new objects of type Symmetric Key; 5 operations in a request",
        f"  operations: Create, {READ}",
        *(line for line in said if line.startswith("listener partners on ")),
        "  REFUSED in the handshake: unable to get local issuer certificate (client_ca = partners_ca.pem)",
    ]


def test_a_certificate_that_no_listener_serves_ends_with_status_1(certificates: Certificates, config: Path) -> None:
    pair = certificates.pair("stranger")
    Authority("Strangers CA").issue_client("app-1").write(*pair)
    status, said = call("--explain", pair[0], config)
    assert status == 1
    assert len([line for line in said if line.startswith("  REFUSED in the handshake: ")]) == 2


def test_a_trusted_certificate_without_a_rule_is_refused(certificates: Certificates) -> None:
    settings = GatewaySettings([free_port()], [Identity("admin", '{ san_uri = "spiffe://admin" }', shared=False)])
    config = write_config(certificates, settings, free_port(), free_port())
    status, said = call("--explain", certificates.client("app-1")[0], config)
    assert status == 1
    assert said[-2:] == [
        '  identity admin: does not match: san_uri is "spiffe://admin", and the certificate has no usable san_uri',
        "  REFUSED: no identity matches; its first request is answered Authentication Not Successful",
    ]


def test_an_expired_certificate_is_refused(certificates: Certificates, config: Path) -> None:
    ended = datetime.now(UTC) - timedelta(days=1)
    pair = certificates.pair("ended")
    certificates.clients_ca.issue_client("app-2", not_before=ended - timedelta(days=9), not_after=ended).write(*pair)
    status, said = call("--explain", pair[0], config)
    assert status == 1
    assert "  REFUSED in the handshake: certificate has expired (client_ca = clients_ca.pem)" in said


def test_a_revoked_certificate_is_refused(certificates: Certificates) -> None:
    certificate = x509.load_pem_x509_certificate(certificates.client("app-3")[0].read_bytes())
    certificates.path("clients.crl").write_bytes(crl_of(certificates.clients_ca, [certificate]))
    settings = GatewaySettings([free_port()], listener='client_crl = "clients.crl"')
    config = write_config(certificates, settings, free_port(), free_port())

    assert call("--explain", certificates.client("app-1")[0], config)[0] == 0
    status, said = call("--explain", certificates.client("app-3")[0], config)

    assert status == 1
    assert said[-1].startswith(
        "  REFUSED after the handshake: the client certificate, or a CA certificate above it, has"
    )


def test_json_has_the_same_facts(certificates: Certificates, config: Path) -> None:
    certificate, _ = certificates.client("app-1", dns=["app-1.example.com"])
    status, said = call("--explain", certificate, "--json", config)
    found = json.loads("\n".join(said))
    kmip, partners = found["listeners"]
    assert (status, found["served"]) == (0, True)
    assert found["certificate"]["san_dns"] == ["app-1.example.com"]
    assert (kmip["trusted"], kmip["identity"], kmip["shared"]) == (True, "apps", True)
    assert [(rule["identity"], rule["matches"], rule["key"]) for rule in kmip["rules"]] == [
        ("admin", False, "subject_cn"),
        ("web", False, "subject_cn"),
        ("partner", False, "listeners"),
        ("apps", True, ""),
    ]
    assert (kmip["rules"][0]["patterns"], kmip["rules"][0]["values"]) == (["admin"], ["app-1"])
    assert kmip["policy"]["allow"] == ["read", "Create"]
    assert "Export" not in kmip["policy"]["operations"]
    assert (partners["trusted"], partners["identity"]) == (False, None)


@pytest.mark.parametrize(
    ("name", "dns"), [("admin", []), ("web-1", ["a.web.example.com"]), ("web-2", ["a.b.web.example.com"]), ("x", [])]
)
def test_the_explanation_is_the_identification_of_a_gateway(
    certificates: Certificates, config: Path, name: str, dns: list[str]
) -> None:
    settings = load(config)
    chain = read_chain(certificates.client(name, dns=dns)[0])
    identities = Identities(rule for rule in settings.identities if rule.listeners != ("partners",))
    principal = identities.identify(chain[0].public_bytes(Encoding.DER))

    on_kmip, _on_partners = explain(settings, chain).listeners

    assert principal is not None
    assert on_kmip.identity is not None
    assert on_kmip.identity.name == principal.identity.name
    assert [rule.identity for rule in on_kmip.rules if not rule.reason] == [principal.identity.name]


def test_a_certificate_may_be_in_der(certificates: Certificates, config: Path) -> None:
    certificate = x509.load_pem_x509_certificate(certificates.client("app-1")[0].read_bytes())
    path = certificates.path("app-1.der")
    path.write_bytes(certificate.public_bytes(Encoding.DER))
    assert call("--explain", path, config)[0] == 0


def test_files_without_a_certificate_are_told(certificates: Certificates, config: Path) -> None:
    missing = certificates.path("missing.pem")
    _, key = certificates.client("app-1")
    assert call("--explain", missing, config) == (
        2,
        [f"{missing}: there is no such file; give a file with a client's certificate"],
    )
    assert call("--explain", key, config) == (
        2,
        [f"{key}: holds no certificate that can be read; give one in PEM or DER"],
    )


# Credentials ----------------------------------------------------------------------------------------------------------

CREDENTIALS = """
[[identities]]
name = "storage"
match = { subject_cn = "*" }
credential = "minted"
client_issuer = "storage-ca.pem"
issuing_ca = "issuing.pem"
issuing_ca_key = "issuing.key"

[[identities]]
name = "by-password"
match = { subject_cn = "app" }
credential = "password"
certificate = "credential-app.pem"
private_key = "credential-app.key"
username = "app"
password_file = "password"
"""


def test_the_credential_of_a_rule_and_the_ca_that_it_is_for_are_named(tmp_path: Path) -> None:
    certificates, folder = Certificates(tmp_path), tmp_path
    storage = Ca.make("Storage CA")
    storage.write(folder / "storage-ca")
    Ca.make("Issuing CA").write(folder / "issuing")
    storage.issue(named("array"), path=folder / "array")
    certificates.credential("app")
    write_secret(folder / "password", "not-to-be-seen")
    (folder / "clients_ca.pem").write_bytes(certificates.clients_ca.certificate_pem + storage.pem)
    own = Identity("own", '{ subject_cn = "nobody" }', shared=False)
    settings = GatewaySettings([free_port()], [own], extra=CREDENTIALS)
    config = write_config(certificates, settings, 25697, free_port())

    _status, of_array = call("--explain", folder / "array.pem", config)
    _status, of_app = call("--explain", certificates.client("app")[0], config)

    shown = "  key managers are shown a certificate with its own names, minted by CN=Issuing CA in issuing.pem"
    assert shown in of_array
    refused = (
        "  identity storage: does not match: it is for clients of the CA in storage-ca.pem only, and that CA did not"
        " issue the certificate itself"
    )
    assert refused in of_app
    assert any("CN=app in credential-app.pem, and the password of app in each request" in line for line in of_app)
    assert not any("not-to-be-seen" in line for line in of_app)


def test_a_client_whose_names_the_issuing_ca_does_not_permit_is_refused(tmp_path: Path) -> None:
    certificates, folder = Certificates(tmp_path), tmp_path
    storage = Ca.make("Storage CA")
    storage.write(folder / "storage-ca")
    constraints = x509.NameConstraints([x509.DirectoryName(named("array"))], None)
    Ca.make("Issuing CA", constraints=constraints).write(folder / "issuing")
    certificates.credential("app")
    write_secret(folder / "password", "not-to-be-seen")
    (folder / "clients_ca.pem").write_bytes(certificates.clients_ca.certificate_pem + storage.pem)
    own = Identity("own", '{ subject_cn = "nobody" }', shared=False)
    settings = GatewaySettings([free_port()], [own], extra=CREDENTIALS)
    config = write_config(certificates, settings, 25697, free_port())
    for name in ("array", "admin"):
        storage.issue(named(name), path=folder / name)

    assert call("--explain", folder / "array.pem", config)[0] == 0
    status, said = call("--explain", folder / "admin.pem", config)
    assert status == 1
    assert said[-1].startswith(
        "  REFUSED: each request is answered Authentication Not Successful: the issuing CA CN=Issuing CA does not"
        " permit the names of the client's certificate: permitted subtree violation"
    )
    _status, as_json = call("--explain", folder / "admin.pem", "--json", config)
    found = json.loads("\n".join(as_json))
    assert (found["served"], "permitted subtree" in found["listeners"][0]["not_minted"]) == (False, True)
