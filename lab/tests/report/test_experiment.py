"""The experiment itself, as small as it can be, with all of its programs."""

from kmip_lab.report.cases import CASES, OPERATIONS, VARIANTS
from kmip_lab.report.experiment import Settings, Step, run
from kmip_lab.report.results import BEYOND, REPLICATION, ReportPoint

_LARGE = 300.0  # scale


async def test_more_clients_and_kinds_of_replication() -> None:
    steps: list[Step] = []
    points: list[ReportPoint] = []
    await run(Settings(_LARGE, [], [], beyond=[12], replication=[2]), steps.append, points.append)
    assert [one.case for one in points if one.part == BEYOND] == ["single_kept", "two_fresh", "two_kept", "gateway_two"]
    variants = [(one.variant, one.case) for one in points if one.part == REPLICATION]
    assert variants == [(variant, case) for variant in VARIANTS for case in ("two_kept", "gateway_two")]
    for step, point in zip(steps, points, strict=True):
        assert (step.case, step.clients, step.operation) == (point.case, point.clients, point.operation)
        assert point.errors == 0
        assert point.per_minute > 0
        assert 0 <= point.cpu <= 1
        if CASES[point.case].gateway:
            assert point.opened == 0  # its pools were full when the clock began to run
            assert point.gateway_cpu is not None
            assert point.gateway_cpu > 0
        else:
            assert (point.opened, point.gateway_cpu) == (None, None)


def test_get_and_create_are_measured_besides_the_chosen_operations() -> None:
    assert Settings(6, ["create-ecc"], [2]).measured() == ["create-ecc", "get", "create"]
    assert Settings(6, ["create-ecc"], [2], beyond=(), replication=()).measured() == ["create-ecc"]


def test_at_the_notes_own_size_all_is_as_in_the_note() -> None:
    settings = Settings(1, list(OPERATIONS), range(1, 11))
    assert {
        settings.repeat(name, case, clients) for name in OPERATIONS for case in CASES.values() for clients in (1, 10)
    } == {100}
    assert 3 < settings.seconds() / 3600 < 5


def test_a_larger_scale_has_fewer_repeats_unless_they_take_little_time() -> None:
    settings = Settings(5, list(OPERATIONS), [1, 10])
    assert settings.repeat("create-rsa", CASES["single_fresh"], 10) == 20
    assert settings.repeat("get", CASES["single_kept"], 1) == 100
