"""The check of a server: its names and its pinned fingerprint."""

import pytest
from cryptography.hazmat.primitives import hashes
from kmip_lab.certs import Authority

from gateway.errors import TlsError
from gateway.tls import check_server
from tests.kit.handshakes import server_shows
from tests.kit.processes import Certificates
from tests.kit.streams import (
    TLS_1_2,
    TLS_1_3,
    Pair,
    client_tls,
    shaken,
)

both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
async def test_the_server_has_each_of_its_names(pair: Pair, name: str) -> None:
    check_server(pair.client, name, frozenset())


@pytest.mark.parametrize("name", ["example.org", "localhost.example.org", "127.0.0.2", "::2"])
async def test_the_server_has_no_other_name(pair: Pair, name: str) -> None:
    with pytest.raises(TlsError) as refused:
        check_server(pair.client, name, frozenset())
    assert refused.value.reason == "hostname"


async def test_pin_accepts_its_certificate_only(pair: Pair) -> None:
    certificate = pair.client.peer_certificate()
    assert certificate is not None
    pin = certificate.fingerprint(hashes.SHA256()).hex()
    check_server(pair.client, None, frozenset({pin}))
    check_server(pair.client, "localhost", frozenset({"00" * 32, pin}))
    for name, pins, reason in [
        (None, {"00" * 32}, "pin"),
        ("localhost", {"00" * 32}, "pin"),
        ("example.org", {pin}, "hostname"),
        (None, set(), "certificate"),
        ("", set(), "certificate"),
    ]:
        with pytest.raises(TlsError) as refused:
            check_server(pair.client, name, frozenset(pins))
        assert refused.value.reason == reason


async def test_without_a_ca_the_pin_decides(certificates: Certificates) -> None:
    foreign = server_shows(certificates, "pinned", Authority("Nobody's CA"))
    async with shaken(foreign, client_tls(certificates, ca=None)) as pair:
        certificate = pair.client.peer_certificate()
        assert certificate is not None
        check_server(pair.client, None, frozenset({certificate.fingerprint(hashes.SHA256()).hex()}))
        with pytest.raises(TlsError):
            check_server(pair.client, None, frozenset({"ab" * 32}))
        assert not pair.client.resumed
