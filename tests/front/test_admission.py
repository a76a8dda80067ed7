"""Admission: every limit, its label, and that counts return to zero."""

import pytest

from gateway.config import AllowanceConfig, LimitsConfig
from gateway.front.admission import Limit
from gateway.identity import Identity, Principal
from tests.kit.settings import make_admission


def principal(subject: str, identity: str = "apps") -> Principal:
    return Principal(Identity(identity, shared=True), "CN=ca", subject, 0, float("inf"))


def test_requests_in_flight_of_one_principal_are_bounded() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(max_requests=2)})
    busy = admission.account(principal("CN=busy"))
    assert [busy.begin(0.0) for _ in range(3)] == [None, None, Limit.PRINCIPAL_REQUESTS]
    assert admission.account(principal("CN=calm")).begin(0.0) is None
    busy.end()
    assert busy.begin(0.0) is None


def test_requests_in_flight_of_the_gateway_are_bounded() -> None:
    admission = make_admission(max_requests=3)
    accounts = [admission.account(principal(f"CN={number}")) for number in range(4)]
    assert [account.begin(0.0) for account in accounts] == [None, None, None, Limit.REQUESTS]
    accounts[0].end()
    assert accounts[3].begin(0.0) is None


def test_a_request_that_is_refused_counts_for_nothing() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(max_requests=1)})
    account = admission.account(principal("CN=busy"))
    for _ in range(10):
        account.begin(0.0)
    assert (account.requests, admission.requests) == (1, 1)


def test_the_rate_of_one_principal_is_bounded() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(requests_per_second=10, request_burst=3)})
    account = admission.account(principal("CN=busy"))
    assert [account.begin(0.0) for _ in range(4)] == [None, None, None, Limit.RATE]
    assert account.begin(0.1) is None
    assert account.begin(0.1) is Limit.RATE


def test_a_fresh_session_does_not_reset_the_rate() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(requests_per_second=1)})
    for session in range(5):
        account = admission.account(principal("CN=legacy"))
        account.connect()
        assert account.begin(0.0) is (None if session == 0 else Limit.RATE)
        account.disconnect()


def test_connections_of_one_principal_are_bounded_over_all_listeners() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(max_clients=2)})
    accounts = [admission.account(principal("CN=busy")) for _ in range(3)]
    assert [account.connect() for account in accounts] == [None, None, Limit.PRINCIPAL_CLIENTS]
    accounts[0].disconnect()
    assert accounts[2].connect() is None


def test_subjects_of_one_identity_have_an_account_each() -> None:
    admission = make_admission(allowances={"apps": AllowanceConfig(max_requests=1)})
    assert admission.account(principal("CN=a")).begin(0.0) is None
    assert admission.account(principal("CN=b")).begin(0.0) is None


def test_an_identity_without_an_allowance_has_the_usual_one() -> None:
    account = make_admission().account(principal("CN=a"))
    assert all(account.begin(0.0) is None for _ in range(AllowanceConfig().max_requests))
    assert account.begin(0.0) is Limit.PRINCIPAL_REQUESTS


def test_idle_accounts_are_forgotten() -> None:
    admission = make_admission()
    kept = admission.account(principal("CN=kept"))
    kept.connect()
    for number in range(25_000):
        admission.account(principal(f"CN={number}"))
    assert admission.account(principal("CN=kept")) is kept
    assert len(admission._accounts) <= 10_001


@pytest.mark.parametrize("sizes", [[80], [40, 40], [60, -60, 80]])
def test_one_principal_holds_four_fifths_of_the_bytes_at_most(sizes: list[int]) -> None:
    admission = make_admission(max_buffered=100)
    account = admission.account(principal("CN=busy"))
    assert [account.hold(size) for size in sizes] == [None] * len(sizes)
    assert account.hold(1) is Limit.PRINCIPAL_BUFFERED
    assert (account.buffered, admission.buffered) == (80, 80)


def test_each_further_principal_may_hold_four_fifths_of_the_rest() -> None:
    admission = make_admission(max_buffered=1000)
    for number, share in enumerate([800, 160, 32]):
        account = admission.account(principal(f"CN={number}"))
        assert account.hold(share + 1) is Limit.BUFFERED
        assert account.hold(share) is None
        assert account.hold(1) is Limit.PRINCIPAL_BUFFERED
    assert admission.buffered == 992


def test_bytes_held_are_bounded_over_all_principals() -> None:
    admission = make_admission(max_buffered=1000)
    admission.account(principal("CN=busy")).hold(800)
    assert admission.account(principal("CN=calm")).hold(201) is Limit.BUFFERED


def test_clients_without_an_identity_share_one_account() -> None:
    admission = make_admission(max_buffered=100)
    assert admission.unidentified.hold(80) is None
    assert admission.unidentified.hold(1) is Limit.PRINCIPAL_BUFFERED
    assert admission.account(principal("CN=calm")).hold(16) is None


def test_an_account_that_holds_bytes_is_not_forgotten() -> None:
    admission = make_admission()
    kept = admission.account(principal("CN=kept"))
    kept.hold(1)
    for number in range(10_500):
        admission.account(principal(f"CN={number}"))
    assert admission.account(principal("CN=kept")) is kept


def test_limits_change_in_place() -> None:
    admission = make_admission(max_requests=5, max_half_open=7)
    account = admission.account(principal("CN=busy"))
    assert account.begin(0.0) is None
    admission._limits.adopt(LimitsConfig(max_requests=1, max_half_open=3), ["max_requests", "max_half_open"])
    admission.settings_changed({}, ())
    assert account.begin(0.0) is Limit.REQUESTS
    assert admission.half_open.max_half_open == 3


def test_a_changed_rate_begins_with_a_full_bucket() -> None:
    allowance = AllowanceConfig(requests_per_second=1.0)
    admission = make_admission(allowances={"apps": allowance})
    account = admission.account(principal("CN=busy"))
    assert [account.begin(0.0) for _ in range(2)] == [None, Limit.RATE]
    allowance.adopt(AllowanceConfig(requests_per_second=3.0), ["requests_per_second"])
    admission.settings_changed({"apps": allowance}, {"apps"})
    assert [account.begin(0.0) for _ in range(4)] == [None, None, None, Limit.RATE]


def test_bytes_move_between_accounts_and_the_sum_stays() -> None:
    admission = make_admission()
    one, two = admission.account(principal("CN=one")), admission.account(principal("CN=two"))
    assert one.hold(100) is None
    two.take_over_bytes(one, 60)
    assert (one.buffered, two.buffered, admission.buffered) == (40, 60, 100)
