"""Advice of ``check``: settings and files with which the gateway runs, and which are probably mistakes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kmip_lab.certs import Authority

from gateway.config import advice, load
from tests.kit.config_files import SMALL, changed, make_pair, put_certificates, unfolded, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of SMALL, valid for a year."""
    put_certificates(tmp_path, SMALL)
    for name in ("server", "clients-ca", "kms-ca", "gateway-client"):
        certificate, key = make_pair(name, lasts=timedelta(days=364))
        (tmp_path / f"{name}.pem").write_bytes(certificate)
        (tmp_path / f"{name}.key").write_bytes(key)
    return tmp_path


def advice_for(folder: Path, text: str) -> list[str]:
    found = advice(load(write(folder, text)), datetime.now(UTC))
    return [line.replace(str(folder), "DIR") for line in found]


def test_a_sound_configuration_gets_no_advice(folder: Path) -> None:
    assert advice_for(folder, SMALL) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'ca = "kms-ca.pem"',
            'ca = "kms-ca.pem"\nrole = "ro"',
            """
            backends: every role is "ro", so that no client can create, change or destroy anything; set role = "rw" for
                a key manager that takes changes
            """,
        ),
        (
            'subject_cn = "*"',
            'subject_cn = "CN=app-1"',
            """
            identities["everyone"].match.subject_cn: "CN=app-1" begins with "CN=", which no common name does as a rule;
                write the common name alone: "app-1"
            """,
        ),
        (
            "127.0.0.1:15696",
            "127.0.0.1:5696",
            """
            backends["atlanta-001"].address: 127.0.0.1:5696 is the address of listeners["kmip"]: the gateway would be
                its own key manager; give the key manager's address
            """,
        ),
    ],
)
def test_settings_that_are_probably_mistakes(folder: Path, old: str, new: str, expected: str) -> None:
    assert advice_for(folder, changed(old, new)) == unfolded(expected)


def test_a_ca_file_without_a_root_is_pointed_out(folder: Path) -> None:
    (folder / "clients-ca.pem").write_bytes(Authority("CA", "ecdsa").issue_client("app-1").certificate_pem)
    assert advice_for(folder, SMALL) == unfolded("""
        listeners["kmip"].client_ca: DIR/clients-ca.pem holds CN=app-1, which is no CA: no certificate can be verified
            with it; give the root CA: its issuer, CN=CA, or the CA above that
    """)


def test_certificates_of_the_wrong_purpose_are_pointed_out(folder: Path) -> None:
    authority = Authority("CA", "ecdsa")
    authority.issue_client("gateway").write(folder / "server.pem", folder / "server.key")
    authority.issue_server("gateway").write(folder / "gateway-client.pem", folder / "gateway-client.key")
    assert advice_for(folder, SMALL) == unfolded("""
        listeners["kmip"].certificate: DIR/server.pem is not for TLS servers (extended key usage without serverAuth):
            clients may refuse it; have it issued for servers
        identities["everyone"].certificate: DIR/gateway-client.pem is not for TLS clients (extended key usage without
            clientAuth): key managers may refuse it; have it issued for clients
    """)
