"""Texts of mistakes in a configuration."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from gateway.config.mistakes import EXAMPLES
from gateway.config.model import LISTS, SECTIONS
from tests.kit.config_files import (
    SECOND_BACKEND,
    SMALL,
    mistakes_in,
    pair,
    unfolded,
)

#: The file has texts of SMALL that are replaced (-), their replacement (+), files with other contents (@ FILE KIND),
#: and every mistake that must be reported (=), for a reader to review. Without a "-", the "+" are added at the end. A
#: line that is indented further continues the line above.
REVIEWED: Final = Path(__file__).with_name("mistakes.txt")


def _contents(kind: str) -> bytes:
    certificate, key = pair("server")
    parsed = x509.load_pem_x509_certificate(certificate)
    if kind == "pkcs12":
        private = serialization.load_pem_private_key(key, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        protection = serialization.BestAvailableEncryption(b"passphrase")
        return pkcs12.serialize_key_and_certificates(b"server", private, parsed, None, protection)
    return {
        "empty": b"",
        "bom": b"\xef\xbb\xbf" + certificate,
        "der": parsed.public_bytes(serialization.Encoding.DER),
        "key": key,
        "certificate": certificate,
    }[kind]


def read_cases(text: str) -> list[Any]:
    cases = []
    for case in re.split(r"\n(?=\w)", text.strip()):
        name, *rows = re.sub(r"\n {4}", " ", case).split("\n")
        removed, added, files, said = ([row[4:] for row in rows if row[2] == mark] for mark in "-+@=")
        cases.append(pytest.param("\n".join(removed), "\n".join(added), files, said, id=name))
    return cases


@pytest.mark.parametrize(("old", "new", "files", "expected"), read_cases(REVIEWED.read_text()))
def test_a_mistake_says_what_is_wrong_and_what_to_do(
    folder: Path, old: str, new: str, files: list[str], expected: list[str]
) -> None:
    text = SMALL.replace(old, new, 1) if old else SMALL + new
    assert text != SMALL or files
    for name, kind in map(str.split, files):
        (folder / name).write_bytes(_contents(kind))
    assert mistakes_in(folder, text) == expected


def test_an_empty_file_lacks_three_sections(folder: Path) -> None:
    assert mistakes_in(folder, "") == [
        "listeners: missing; add [[listeners]]",
        "backends: missing; add [[backends]]",
        "identities: missing; add [[identities]]",
    ]
    assert mistakes_in(folder, "listeners = []\nbackends = [1]\nidentities = [{}]") == [
        "listeners: is empty; give at least one table",
        "backends[0]: must be a table; write [[backends]]",
        'identities[0].name: missing; add a line such as name = "a-name"',
        'identities[0].match: missing; add a line such as match = { subject_cn = "app-1" }',
        'identities[0].certificate: missing; add a line such as certificate = "certs/own.pem"',
        'identities[0].private_key: missing; add a line such as private_key = "certs/own.key"',
    ]


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    """Of single settings, of the files they name, and of settings that contradict each other, in one table or many."""
    (folder / "clients-ca.pem").unlink()
    text = (
        SMALL.replace('"modern"', '"modren"')
        .replace("shared = true\n", "")
        .replace('"gateway-client.key"', '"server.key"')
        .replace('"127.0.0.1:9696"', '"127.0.0.1:5696"')
        + SECOND_BACKEND.replace("london-001", "atlanta-001").replace("ca =", "cca =")
        + "[deadlines]\nrequest = 4\nconect = 1\n[limits]\nmax_depth = 1000\n"
    )
    assert mistakes_in(folder, text) == unfolded("""
        listeners["kmip"].client_ca: there is no file DIR/clients-ca.pem; correct the path, which is relative to
            this file
        listeners["kmip"].tls_policy: "modren" is not known; write "modern", "compatible" or "legacy"
        backends[1].ca: missing; give a file with the CA that issued the key manager's certificate, or pin the
            certificate with pinned_sha256
        backends[1].cca: unknown key "cca"; did you mean "ca"?
        identities["everyone"].shared: is false, but match can match more than one client (subject_cn has a
            wildcard), and the gateway shows the key managers one certificate for all of them: they would see, use and
            destroy each other's keys; narrow match to one literal value, or set shared = true if that is intended
        identities["everyone"].private_key: DIR/server.key does not belong to the certificate in
            DIR/gateway-client.pem; give the key of that certificate
        deadlines.conect: unknown key "conect"; did you mean "connect"?
        limits.max_depth: 1000 is too much; give at most 128
        backends[1].name: "atlanta-001" is also the name of backends[0]; give each table its own name
        admin.bind: 127.0.0.1:5696 is also the address of listeners["kmip"]; give each its own port
        pool.queue_timeout: 5 s is longer than deadlines.request = 4 s, which includes this time; lower this
            setting or raise deadlines.request
    """)


@pytest.mark.parametrize("setting", ["certificate", "name", "tls_policy", "bind"])
def test_a_private_key_in_the_wrong_place_is_not_repeated(folder: Path, setting: str) -> None:
    secret = "-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMG\\n-----END PRIVATE KEY-----"
    text = re.sub(rf'^{setting} = ".*"$', lambda _: f'{setting} = "{secret}"', SMALL, count=1, flags=re.MULTILINE)
    assert "MIGH" not in "\n".join(mistakes_in(folder, text))


def test_every_required_setting_has_an_example() -> None:
    required = {
        key for section in LISTS for key, field in SECTIONS[section].model_fields.items() if field.is_required()
    }
    assert required == set(EXAMPLES)
