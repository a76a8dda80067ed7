"""Files that change: told once, together, and only after they have settled."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from gateway.watching import FileWatch


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    autojump_clock.autojump_threshold = 0.01
    return autojump_clock


async def test_a_certificate_and_its_key_are_told_together(tmp_path: Path, clock: MockClock) -> None:
    certificate, key = tmp_path / "a.pem", tmp_path / "a.key"
    certificate.write_text("old")
    key.write_text("old")
    watch = FileWatch(lambda: [certificate, key])
    found: list[list[Path]] = []

    async def look() -> None:
        found.append(await watch.changed())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.sleep(3.5)
        certificate.write_text("newer")
        await trio.sleep(1)
        key.write_text("newer")
        await trio.sleep(1.4)
        assert found == []
    assert found == [[key, certificate]]
    assert clock.current_time() < 8


async def test_a_replaced_link_is_a_change(tmp_path: Path, clock: MockClock) -> None:
    """As Kubernetes renews a secret: a symbolic link to a directory is replaced."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tls.crt").write_text("of one length")
    link = tmp_path / "data"
    link.symlink_to("1")
    watch = FileWatch(lambda: [link / "tls.crt"])

    async with trio.open_nursery() as nursery:

        async def swap() -> None:
            await trio.sleep(2)
            (tmp_path / "new").symlink_to("2")
            (tmp_path / "new").rename(link)

        nursery.start_soon(swap)
        assert await watch.changed() == [link / "tls.crt"]
    assert clock.current_time() < 6


async def test_a_file_that_goes_or_comes_is_a_change(tmp_path: Path, clock: MockClock) -> None:
    file = tmp_path / "a.pem"
    file.write_text("1")
    watch = FileWatch(lambda: [file])
    file.unlink()
    assert await watch.changed() == [file]
    file.write_text("2")
    assert await watch.changed() == [file]
    assert clock.current_time() < 10


async def test_a_file_that_is_named_for_the_first_time_is_no_change(tmp_path: Path, clock: MockClock) -> None:
    file, new = tmp_path / "a.pem", tmp_path / "b.pem"
    file.write_text("1")
    new.write_text("1")
    files = [file]
    watch = FileWatch(lambda: files)
    files.append(new)
    with trio.move_on_after(30) as scope:
        await watch.changed()
    assert scope.cancelled_caught
    assert clock.current_time() >= 30


async def test_an_added_file_is_watched_at_once_and_no_other_change_is_lost(tmp_path: Path) -> None:
    file, new = tmp_path / "a.pem", tmp_path / "b.pem"
    file.write_text("1")
    new.write_text("1")
    files = [file]
    watch = FileWatch(lambda: files)
    file.write_text("22")
    files.append(new)
    watch.add_new()
    new.write_text("22")
    assert await watch.changed() == [file, new]


async def test_changed_permissions_are_a_change(tmp_path: Path, clock: MockClock) -> None:
    """A file that could not be read is read again once it can be."""
    path = tmp_path / "clients.crl"
    path.write_text("contents")
    path.chmod(0o200)
    watch = FileWatch(lambda: [path], interval=0.2, settled=0.2)

    async with trio.open_nursery() as nursery:

        async def allow() -> None:
            await trio.sleep(2)
            path.chmod(0o644)

        nursery.start_soon(allow)
        assert await watch.changed() == [path]
    assert clock.current_time() < 3
