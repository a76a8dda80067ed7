"""The experiment itself, as small as it can be, with all of its programs."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from kmip_lab.cli import main
from kmip_lab.speed.report.cases import CASES, OPERATIONS
from kmip_lab.speed.report.experiment import Settings, Step, run
from kmip_lab.speed.report.links import VARIANTS, roles_of
from kmip_lab.speed.report.results import BEYOND, REPLICATION, Point, Results

_LARGE = 300.0  # scale


async def test_more_clients_and_kinds_of_replication() -> None:
    steps: list[Step] = []
    points: list[Point] = []
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


def test_the_command_measures_and_writes_the_page(tmp_path: Path) -> None:
    arguments = ["--scale=300", "--clients=2", "--only=create-ecc", "--note-only"]
    done = CliRunner().invoke(
        main, ["report", *arguments, f"--directory={tmp_path}", f"--save={tmp_path / 'results.json'}"]
    )
    assert done.exit_code == 0, done.output
    results = Results.read(tmp_path / "results.json")
    assert [one.case for one in results.points] == list(CASES)
    assert not any(one.errors for one in results.points)
    text = (tmp_path / "speed-report.md").read_text()
    assert OPERATIONS["create-ecc"] in text
    assert (tmp_path / "charts" / "speed-create-ecc.svg").exists()
    assert str(tmp_path) not in text


def test_what_is_measured_besides_the_operations_that_were_chosen() -> None:
    assert Settings(6, ["create-ecc"], [2]).measured() == ["create-ecc", "get", "create"]
    assert Settings(6, ["create-ecc"], [2], beyond=(), replication=()).measured() == ["create-ecc"]


def test_at_the_notes_own_size_all_is_as_in_the_note() -> None:
    settings = Settings(1, list(OPERATIONS), range(1, 11))
    assert {
        settings.repeat(name, case, clients) for name in OPERATIONS for case in CASES.values() for clients in (1, 10)
    } == {100}
    assert 3 < settings.seconds() / 3600 < 5


def test_at_a_larger_scale_there_are_fewer_repeats_but_where_they_are_soon_done() -> None:
    settings = Settings(5, list(OPERATIONS), [1, 10])
    assert settings.repeat("create-rsa", CASES["single_fresh"], 10) == 20
    assert settings.repeat("get", CASES["single_kept"], 1) == 100


@pytest.mark.parametrize(
    ("variant", "partners"),
    [
        ("", {"atlanta-001": ["atlanta-002"], "london-001": ["london-002"]}),
        ("collocated", {"atlanta-001": ["atlanta-002"], "london-001": ["london-002"]}),
        ("remote", {"atlanta-001": ["london-002"], "london-001": ["atlanta-002"]}),
        ("asynchronous", {"atlanta-001": [], "london-001": []}),
    ],
)
def test_who_is_whose_synchronous_partner(variant: str, partners: dict[str, list[str]]) -> None:
    roles = roles_of(variant, 2.0)
    for master, expected in partners.items():
        links = roles[master].links
        assert [other for other, link in links.items() if link.synchronous] == expected
        assert links["atlanta-002" if master.startswith("london") else "london-002"].delay == (0.045 if variant else 0)
