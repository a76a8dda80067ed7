"""The table of cases."""

from kmip_lab.compare.cases import CASES, Backends


def test_every_ceiling_is_a_case_before_backends_without_costs() -> None:
    assert all(CASES[case.ceiling].backends is Backends.FREE for case in CASES.values())


def test_rates_are_compared_if_they_depend_on_the_proxy() -> None:
    assert CASES["kept"].compares_rates
    assert not CASES["kept-1"].compares_rates
    assert not CASES["kept-even"].compares_rates


def test_full_backends_resume_nothing() -> None:
    assert [kind for kind in Backends if not kind.resumes] == [Backends.FREE_FULL, Backends.HSM_FULL]
