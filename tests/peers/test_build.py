"""Builds: kept while nothing changes that they are made from."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.peers.build import NotFetchedError, Software, built
from tests.peers.run import PeerError


def counted(tmp_path: Path, version: str = "1.0") -> tuple[Software, list[str], Path]:
    builds: list[str] = []
    source = tmp_path / "driver.go"
    source.write_text("one")
    software = Software("a peer", version, "Go", build=lambda _: builds.append(source.read_text()), sources=(source,))
    return software, builds, source


def test_a_build_is_made_once(tmp_path: Path) -> None:
    software, builds, _ = counted(tmp_path)
    assert built(software, tmp_path / "builds") == built(software, tmp_path / "builds")
    assert builds == ["one"]


def test_a_changed_source_is_built_anew(tmp_path: Path) -> None:
    software, builds, source = counted(tmp_path)
    built(software, tmp_path / "builds")
    source.write_text("two")
    built(software, tmp_path / "builds")
    assert builds == ["one", "two"]


def test_a_build_of_another_version_is_made_anew(tmp_path: Path) -> None:
    software, builds, _ = counted(tmp_path)
    built(software, tmp_path / "builds")
    built(replace(software, version="1.1"), tmp_path / "builds")
    assert len(builds) == 2


def test_a_build_that_failed_is_tried_again(tmp_path: Path) -> None:
    software, builds, _ = counted(tmp_path)

    def fail(_: Path) -> None:
        raise PeerError("it does not compile")

    for _ in range(2):
        with pytest.raises(PeerError, match="compile"):
            built(replace(software, build=fail), tmp_path / "builds")
    built(software, tmp_path / "builds")
    assert len(builds) == 1


def failing_fetch(message: str) -> Software:
    def fetch(_: Path) -> None:
        raise PeerError(message)

    return Software("a peer", "1.0", "Go", fetch=fetch)


def test_a_source_that_can_not_be_fetched_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFetchedError):
        built(failing_fetch("dial tcp: lookup proxy.golang.org: no such host"), tmp_path)


@pytest.mark.parametrize(
    "message", ["THESE PACKAGES DO NOT MATCH THE HASHES", "verifying module: checksum mismatch", "SECURITY ERROR"]
)
def test_a_source_that_is_not_the_pinned_one_is_a_failure(tmp_path: Path, message: str) -> None:
    with pytest.raises(PeerError) as error:
        built(failing_fetch(message), tmp_path)
    assert not isinstance(error.value, NotFetchedError)


def test_two_runs_at_once_build_once(tmp_path: Path) -> None:
    builds: list[float] = []

    def build(_: Path) -> None:
        builds.append(time.monotonic())
        time.sleep(0.3)

    software = Software("a peer", "1.0", "Go", build=build)
    runs = [threading.Thread(target=built, args=(software, tmp_path)) for _ in range(3)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert len(builds) == 1
