"""Warnings about certificates that are not valid."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.config import (
    load,
    summary,
    warnings,
)
from tests.kit.config_files import (
    SECOND_IDENTITY,
    SMALL,
    make_pair,
    pair,
    put_second,
    unfolded,
    write,
)


def test_an_expired_certificate_of_one_identity_is_a_warning(folder: Path) -> None:
    ended = put_second(folder, lasts=-timedelta(days=2))
    config = load(write(folder, SMALL + SECOND_IDENTITY))

    assert warnings(config, datetime.now(UTC)) == unfolded(f"""
        identities["second"].certificate: {folder}/second.pem ended on {ended:%Y-%m-%d}; renew it; until then, key
            managers may refuse this identity
    """)
    (line,) = (line for line in summary(config) if "second.pem until" in line)
    assert line.endswith(": ENDED, renew it")


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
