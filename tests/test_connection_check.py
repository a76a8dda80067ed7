"""The table of ``check --connect``; the tries themselves are in tests/e2e/test_check_connect.py."""

from datetime import UTC, datetime
from typing import Any

from gateway.connection_check import FAILED, NOT_TRIED, OK, WARNING, Attempt, counts, table, with_common_versions

WELL = Attempt(
    "kms-1",
    "10.0.0.1:5696",
    "red",
    OK,
    milliseconds=12.4,
    tls="TLSv1.3",
    versions=((1, 0), (1, 1), (1, 2), (2, 1)),
    certificate_ends=datetime(2031, 5, 6, tzinfo=UTC),
)
ILL = Attempt("kms-2", "10.0.0.2:5696", "", FAILED, "connect", "can't connect", "see that it runs")


def test_the_table_has_a_line_for_each_try_and_two_more_for_a_failure() -> None:
    assert table([WELL, ILL]) == [
        "backend  address        identity  result  ms  TLS      KMIP         certificate until",
        "kms-1    10.0.0.1:5696  red       ok      12  TLSv1.3  1.0-1.2 2.1  2031-05-06",
        "kms-2    10.0.0.2:5696  any       failed  -   -        -            -",
        "    can't connect (connect)",
        "    remedy: see that it runs",
    ]


def test_identities_with_the_same_failure_stand_above_one_detail() -> None:
    refused = ILL._replace(identity="red", reason="credential", detail="refused", remedy="register it")
    blue, green = refused._replace(identity="blue"), WELL._replace(backend="kms-2", address=ILL.address)
    lines = table([refused, green, blue])[1:]
    assert [line.split()[2] for line in lines[:2]] == ["red", "blue"]
    assert lines[2:4] == ["    refused (credential)", "    remedy: register it"]
    assert lines[4].split()[2] == "red"
    assert len(lines) == 5


def test_reasons_of_tries_that_were_not_made_come_last_and_once() -> None:
    minted = Attempt("kms-1", "10.0.0.1:5696", "arrays", NOT_TRIED, "minted", "one is minted", "give a certificate")
    lines = table([minted, WELL, minted._replace(backend="kms-2"), ILL])
    assert lines[-3:] == ["not tried: arrays", "    one is minted (minted)", "    remedy: give a certificate"]
    assert sum("one is minted" in line for line in lines) == 1


def test_results_are_counted() -> None:
    assert counts([WELL, ILL]) == {"ok": 1, "warning": 0, "failed": 1, "not tried": 0}


def test_json_has_versions_and_times_as_text() -> None:
    found: dict[str, Any] = WELL.as_json()
    assert found["versions"] == ["1.0", "1.1", "1.2", "2.1"]
    assert found["certificate_ends"] == "2031-05-06T00:00:00+00:00"


def test_missing_versions_are_a_warning_for_the_key_manager_that_lacks_them() -> None:
    old = WELL._replace(backend="kms-3", versions=((1, 0), (1, 1)))
    first, second, third = with_common_versions([WELL, old, ILL])
    assert (first, third) == (WELL, ILL)
    assert (second.result, second.reason) == (WARNING, "versions_differ")
    assert "does not offer KMIP 1.2, 2.1" in second.detail
