"""Warnings about certificates that are not valid."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.config import (
    advice,
    load,
    warnings,
)
from tests.kit.config_files import (
    PIN,
    SECOND_IDENTITY,
    SMALL,
    changed,
    make_pair,
    mistakes_in,
    pair,
    put_certificates,
    put_second,
    unfolded,
    write,
)
from tests.kit.revocation import DAY, HOUR, TestCa


def test_an_expired_certificate_of_one_identity_is_a_warning(folder: Path) -> None:
    ended = put_second(folder, lasts=-timedelta(days=2))
    config = load(write(folder, SMALL + SECOND_IDENTITY))

    assert warnings(config, datetime.now(UTC)) == unfolded(f"""
        identities["second"].certificate: {folder}/second.pem ended on {ended:%Y-%m-%d}; renew it; until then, key
            managers may refuse this identity
    """)
    assert not any("second.pem" in line for line in advice(config, datetime.now(UTC)))  # a warning already


def test_a_certificate_that_is_not_valid_yet_is_a_warning(folder: Path) -> None:
    ends = put_second(folder, lasts=timedelta(days=366))
    config = load(write(folder, SMALL + SECOND_IDENTITY))

    begins = ends - timedelta(days=365)
    assert warnings(config, datetime.now(UTC)) == unfolded(f"""
        identities["second"].certificate: {folder}/second.pem is not valid before {begins:%Y-%m-%d %H:%M} UTC; check
            this machine's clock, or replace the file; until then, key managers may refuse this identity
    """)
    later = warnings(config, begins + timedelta(minutes=1))
    assert not any("second" in warning for warning in later)


def test_an_expired_certificate_up_the_chain_is_a_warning(folder: Path) -> None:
    expired, _ = make_pair("intermediate CA", lasts=-timedelta(days=2))
    (folder / "second.pem").write_bytes(pair("second")[0] + expired)
    assert len(warnings(load(write(folder, SMALL + SECOND_IDENTITY)), datetime.now(UTC))) == 1


ROOT = TestCa("Root")
INTERMEDIATE = TestCa("Intermediate", ROOT)


def crl_warnings(folder: Path, crls: bytes, *, stale: str = "refuse") -> list[str]:
    put_certificates(folder, SMALL)
    (folder / "clients-ca.pem").write_bytes(ROOT.pem + INTERMEDIATE.pem)
    (folder / "clients.crl").write_bytes(crls)
    text = changed(
        'client_ca = "clients-ca.pem"\n',
        f'client_ca = "clients-ca.pem"\nclient_crl = "clients.crl"\ncrl_stale = "{stale}"\n',
    )
    found = warnings(load(write(folder, text)), datetime.now(UTC))
    return [warning.replace(str(folder), "DIR") for warning in found]


def test_current_crls_of_all_cas_are_no_warning(folder: Path) -> None:
    assert crl_warnings(folder, ROOT.crl_pem() + INTERMEDIATE.crl_pem()) == []


def test_a_ca_without_a_crl_is_a_warning(folder: Path) -> None:
    assert crl_warnings(folder, ROOT.crl_pem()) == unfolded("""
        listeners["kmip"].client_crl: there is no CRL of CN=Intermediate, which is in DIR/clients-ca.pem; add its CRL;
            until then, certificates of this CA are refused (crl_stale)
    """)


def test_a_crl_that_is_not_current_is_a_warning(folder: Path) -> None:
    early, late = ROOT.crl_pem(begins=HOUR), INTERMEDIATE.crl_pem(begins=-DAY, lasts=-HOUR)
    ends = [datetime.now(UTC) + DAY, datetime.now(UTC) - HOUR]
    shown = [f"{end:%Y-%m-%d %H}" for end in ends]
    found = crl_warnings(folder, early + late, stale="accept")
    assert [re.sub(r":\d\d UTC", "", line) for line in found] == [
        f'listeners["kmip"].client_crl: DIR/clients.crl is {what}, for CN={name} (nextUpdate {end}); fetch the current'
        " CRL; until then, certificates of this CA are accepted without a check (crl_stale)"
        for what, name, end in [
            ("not valid yet", "Root", shown[0]),
            ("out of date", "Intermediate", shown[1]),
        ]
    ]


def test_crls_of_a_key_manager_are_warned_of_too(folder: Path) -> None:
    put_certificates(folder, SMALL)
    (folder / "kms-ca.pem").write_bytes(ROOT.pem)
    (folder / "kms.crl").write_bytes(ROOT.crl_pem(begins=-DAY, lasts=-HOUR))
    config = load(write(folder, changed('ca = "kms-ca.pem"\n', 'ca = "kms-ca.pem"\ncrl = ["kms.crl"]\n')))
    (line,) = warnings(config, datetime.now(UTC))
    assert line.startswith(f'backends["atlanta-001"].crl: {folder}/kms.crl is out of date, for CN=Root (nextUpdate ')


def test_a_crl_that_cannot_be_used_is_a_mistake(folder: Path) -> None:
    put_certificates(folder, SMALL)
    (folder / "clients-ca.pem").write_bytes(ROOT.pem)
    (folder / "other.crl").write_bytes(TestCa("Root").crl_pem())
    crls = 'client_crl = ["missing.crl", "other.crl"]\n'
    text = changed('client_ca = "clients-ca.pem"\n', f'client_ca = "clients-ca.pem"\n{crls}')
    missing = (
        'listeners["kmip"].client_crl: there is no file DIR/missing.crl; fetch the CRL, or correct the path (a'
        " relative path begins in the directory of the configuration)"
    )
    assert mistakes_in(folder, text) == [missing]
    (folder / "missing.crl").write_bytes(ROOT.crl_pem())
    assert mistakes_in(folder, text) == unfolded("""
        listeners["kmip"].client_crl: DIR/other.crl holds a CRL of CN=Root that this CA has not signed; fetch it again,
            and find out where it came from
    """)


def test_crls_without_a_ca_have_no_effect(folder: Path) -> None:
    put_certificates(folder, SMALL)
    (folder / "kms.crl").write_bytes(ROOT.crl_pem())
    pinned = f'pinned_sha256 = "{PIN}"\ncrl = "kms.crl"\n'
    assert mistakes_in(folder, changed('ca = "kms-ca.pem"\n', pinned)) == unfolded("""
        backends["atlanta-001"].crl: has no effect without ca, whose CAs sign the CRLs; give that, or leave this line
            out
    """)
