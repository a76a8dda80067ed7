"""Contexts: the versions and suites of each policy, and files that cannot be used."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from OpenSSL import SSL

from gateway.errors import TlsError
from gateway.tls import Policy, client_context, server_context
from gateway.tls.minting import IssuingCa
from tests.kit.authorities import Ca, common_name, encrypt, write_secret
from tests.kit.handshakes import reasons
from tests.kit.processes import Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    client_tls,
    server_tls,
    shake_hands,
    shaken,
    streams,
)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@both_versions
async def test_only_suites_with_forward_secrecy_are_modern(either: Certificates, version: str) -> None:
    async with shaken(server_tls(either), client_tls(either, version=version)) as pair:
        suites = pair.server.connection.get_cipher_list()
    old = [suite for suite in suites if not suite.startswith(("TLS_", "ECDHE-", "DHE-"))]
    weak = [suite for suite in suites if not any(word in suite for word in ("GCM", "CHACHA20"))]
    assert (old, weak) == ([], [])


@pytest.mark.parametrize("suite", ["AES128-SHA256", "AES256-SHA256"])
async def test_mandatory_suites_of_kmip_profiles_need_the_compatible_policy(rsa: Certificates, suite: str) -> None:
    def only() -> SSL.Context:
        context = client_tls(rsa, version=TLS_1_2)
        context.set_cipher_list(suite.encode())
        return context

    assert (await reasons(server_tls(rsa, "modern"), only()))[0] == "no_shared_cipher"
    async with shaken(server_tls(rsa, "compatible"), only()) as pair:
        assert pair.server.connection.get_cipher_name() == suite


@pytest.mark.parametrize("policy", [policy.name.lower() for policy in Policy])
async def test_an_appliance_with_aes256_sha_alone_needs_the_legacy_policy(rsa: Certificates, policy: str) -> None:
    appliance = server_tls(rsa, "legacy")
    appliance.set_max_proto_version(SSL.TLS1_2_VERSION)
    appliance.set_cipher_list(b"AES256-SHA:@SECLEVEL=0")
    context = client_context(*rsa.client("alice"), rsa.path("gateway_ca.pem"), policy)
    if policy != "legacy":
        assert (await reasons(appliance, context))[0] == "no_shared_cipher"
        return
    async with shaken(appliance, context) as pair:
        assert (pair.client.version, pair.client.connection.get_cipher_name()) == (TLS_1_2, "AES256-SHA")


@pytest.mark.parametrize("policy", [policy.name.lower() for policy in Policy])
async def test_a_key_manager_is_verified_with_every_policy(certificates: Certificates, policy: str) -> None:
    context = client_context(*certificates.client("alice"), certificates.path("clients_ca.pem"), policy)
    assert await reasons(server_tls(certificates, policy), context) == ["unknown_ca", "alert"]


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1.1"])
@pytest.mark.parametrize("policy", [policy.name.lower() for policy in Policy])
async def test_old_versions_need_the_legacy_policy(rsa: Certificates, version: str, policy: str) -> None:
    context = client_tls(rsa, version=version)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    if policy != "legacy":
        assert (await reasons(server_tls(rsa, policy), context))[0] == "version"
        return
    async with shaken(server_tls(rsa, policy), context) as pair:
        assert pair.server.version == version


def test_unusable_files_are_named_in_the_error(certificates: Certificates, tmp_path: Path) -> None:
    certificate, key = certificates.pair("server")
    ca = certificates.path("clients_ca.pem")
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    other_key = certificates.client("alice")[1]
    for files in [(bad, key, ca), (certificate, bad, ca), (certificate, other_key, ca), (certificate, key, bad)]:
        wrong = next(file for file in files if file in (bad, other_key))
        with pytest.raises(TlsError, match=wrong.name):
            server_context(*files)


def test_resumption_lifetime_is_set(certificates: Certificates) -> None:
    ca = certificates.path("clients_ca.pem")
    assert server_context(*certificates.pair("server"), ca, resumption_lifetime=60).get_timeout() == 60


async def test_encrypted_keys_are_used_on_both_sides(certificates: Certificates, tmp_path: Path) -> None:
    write_secret(tmp_path / "passphrase", "a passphrase")
    keys = {}
    for name, key in (("server", certificates.pair("server")[1]), ("client", certificates.client("alice")[1])):
        keys[name] = tmp_path / f"{name}.key"
        write_secret(keys[name], encrypt(key.read_bytes(), b"a passphrase"))
    server = server_context(
        certificates.pair("server")[0],
        keys["server"],
        certificates.path("clients_ca.pem"),
        passphrase_file=tmp_path / "passphrase",
    )
    client = client_context(
        certificates.client("alice")[0],
        keys["client"],
        certificates.path("gateway_ca.pem"),
        passphrase_file=tmp_path / "passphrase",
    )
    async with shaken(server, client) as pair:
        assert pair.server.peer_certificate() is not None
    (tmp_path / "passphrase").write_text("another")
    with pytest.raises(TlsError, match="can't be decrypted with the passphrase"):
        client_context(*certificates.client("alice")[:1], keys["client"], None, passphrase_file=tmp_path / "passphrase")


async def test_a_connection_shows_its_own_certificate_and_the_chain(certificates: Certificates) -> None:
    root = Ca.make("Root")
    issuing = Ca.make("Issuing CA", issuer=root)
    (certificates.path("root.pem")).write_bytes(root.pem)
    minted = IssuingCa([issuing.certificate, root.certificate], issuing.key)
    context = client_context(None, None, certificates.path("gateway_ca.pem"), chain=minted.shown_chain)
    server = server_context(*certificates.pair("server"), certificates.path("root.pem"))
    for name in ("alice", "bob"):
        shown = minted.issue(Ca.make("Clients CA").issue(common_name(name)), datetime.now(UTC))
        async with streams(server, context) as pair:
            pair.client.connection.use_certificate(shown.certificate)
            pair.client.connection.use_privatekey(shown.private_key)
            await shake_hands(pair)
            certificate = pair.server.peer_certificate()
            assert certificate is not None
            assert certificate.subject == common_name(name)
