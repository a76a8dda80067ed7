"""The writer's thread: order, errors that pass, and the end."""

import errno
import threading
import time
from collections.abc import Callable

import pytest

from gateway.audit.writer import Order, Writer


class FakeSink:
    """A sink that fails while ``error`` is set, and takes at most ``most`` bytes with one call."""

    takes_many = True

    def __init__(self, most: int = 1 << 20) -> None:
        self.data = b""
        self.error: OSError | None = None
        self.most = most
        self.orders: list[tuple[str, int]] = []
        self.synced = 0
        self.sync_error: OSError | None = None
        self.order_error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        taken = data[: self.most]
        self.data += taken
        return len(taken)

    def sync(self) -> None:
        if self.sync_error is not None:
            raise self.sync_error
        self.synced = len(self.data)

    def rotate(self) -> None:
        if self.order_error is not None:
            raise self.order_error
        self.orders.append(("rotate", len(self.data)))

    def reopen(self) -> None:
        self.orders.append(("reopen", len(self.data)))

    def close(self) -> None:
        self.orders.append(("close", len(self.data)))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


def start(sink: FakeSink) -> Writer:
    writer = Writer(sink, lambda: None)
    writer.start()
    return writer


def stop(writer: Writer) -> None:
    writer.order(Order.STOP)
    writer.join(10)
    assert not writer.is_alive()


def test_lines_are_written_in_order_in_pieces_of_any_size() -> None:
    sink = FakeSink(most=7)
    writer = start(sink)
    lines = [f"line {number}\n".encode() for number in range(500)]
    for line in lines:
        writer.append(line)
    stop(writer)

    assert sink.data == b"".join(lines)
    assert writer.queued == 0


def test_lines_wait_while_the_disk_is_full_and_none_is_lost(sink: FakeSink) -> None:
    sink.error = OSError(errno.ENOSPC, "No space left on device")
    writer = start(sink)
    writer.append(b"1\n")
    until(lambda: writer.error == "No space left on device")
    writer.append(b"2\n")
    assert writer.queued == 4

    sink.error = None
    writer.hurry()
    until(lambda: writer.error is None)
    stop(writer)

    assert sink.data == b"1\n2\n"


def test_a_commit_syncs_what_was_appended_before(sink: FakeSink) -> None:
    progress = threading.Event()
    writer = Writer(sink, progress.set)
    writer.start()
    writer.append(b"intent\n")
    writer.commit()

    assert progress.wait(10)
    until(lambda: writer.synced == 7)
    assert sink.synced == 7
    stop(writer)


def test_orders_are_obeyed_between_lines(sink: FakeSink) -> None:
    writer = start(sink)
    writer.append(b"1\n")
    writer.order(Order.ROTATE)
    writer.append(b"22\n")
    writer.order(Order.REOPEN)
    writer.append(b"3\n")
    stop(writer)

    assert sink.orders == [("rotate", 2), ("reopen", 5), ("close", 7)]


def test_a_failed_rotation_does_not_stop_the_lines(sink: FakeSink) -> None:
    sink.order_error = OSError(errno.EACCES, "Permission denied")
    writer = start(sink)
    writer.order(Order.ROTATE)
    writer.append(b"1\n")
    until(lambda: writer.queued == 0)

    assert writer.order_error == "Permission denied"
    assert writer.error is None
    stop(writer)


def test_the_end_does_not_wait_for_a_full_disk(sink: FakeSink) -> None:
    sink.error = OSError(errno.ENOSPC, "No space left on device")
    writer = start(sink)
    writer.append(b"1\n")
    until(lambda: writer.error is not None)
    stop(writer)

    assert writer.queued == 2


def test_a_file_is_not_moved_away_before_its_commits_are_on_the_disk(sink: FakeSink) -> None:
    sink.sync_error = OSError(errno.EIO, "Input/output error")
    writer = Writer(sink, lambda: None)
    writer.append(b"intent\n")
    writer.order(Order.ROTATE)
    writer.append(b"file\n")
    writer.commit()
    writer.start()
    until(lambda: writer.errors > 0)

    assert (sink.orders, writer.synced) == ([], 0)
    sink.sync_error = None
    until(lambda: writer.synced == 12)
    assert sink.orders == [("rotate", 7)]
    stop(writer)
