"""Sinks of the audit trail: files that are rotated and reopened, streams, and the syslog socket."""

import os
import socket
from pathlib import Path

import pytest

from gateway.audit.chain import Chain
from gateway.audit.sinks import FileSink, StreamSink, SyslogSink
from gateway.errors import ConfigError


def test_a_file_is_made_for_its_owner_only_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        sink = FileSink(path, keep=2)
    finally:
        os.umask(before)
    sink.write(b"one\n")
    sink.close()
    sink = FileSink(path, keep=2)
    sink.write(b"two\n")
    sink.close()

    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_gateways_cannot_write_one_file(tmp_path: Path) -> None:
    first = FileSink(tmp_path / "audit.jsonl", keep=2)

    with pytest.raises(ConfigError, match="another process writes"):
        FileSink(tmp_path / "audit.jsonl", keep=2)

    first.close()
    FileSink(tmp_path / "audit.jsonl", keep=2).close()


def test_rotation_keeps_so_many_files(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "audit.jsonl", keep=2)
    for text in (b"1\n", b"2\n", b"3\n", b"4\n"):
        sink.write(text)
        sink.rotate()
    sink.write(b"5\n")
    sink.close()

    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"audit.jsonl": b"5\n", "audit.jsonl.1": b"4\n", "audit.jsonl.2": b"3\n"}


def test_a_rotation_that_failed_halfway_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FileSink(tmp_path / "audit.jsonl", keep=2)
    sink.write(b"1\n")
    with monkeypatch.context() as patch:
        patch.setattr("gateway.audit.sinks._open", refuse)
        with pytest.raises(OSError, match="no room"):
            sink.rotate()
    sink.write(b"2\n")
    sink.rotate()
    sink.close()

    assert (tmp_path / "audit.jsonl.1").read_bytes() == b"1\n2\n"
    assert not (tmp_path / "audit.jsonl.2").exists()


def refuse(_path: Path) -> int:
    raise OSError(28, "no room")


def test_reopen_writes_to_a_new_file_at_the_path(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, keep=2)
    sink.write(b"1\n")
    sink.reopen()  # nobody has moved the file
    sink.write(b"2\n")
    path.rename(tmp_path / "moved")
    sink.reopen()
    sink.write(b"3\n")
    sink.close()

    assert (tmp_path / "moved").read_bytes() == b"1\n2\n"
    assert path.read_bytes() == b"3\n"


def test_the_tail_is_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    chain = Chain()
    path.write_bytes(chain.seal('"event":"start"') + chain.seal('"event":"request"') + b'{"seq":3,"ti')

    sink = FileSink(path, keep=2)
    tail = sink.tail()
    sink.close()

    assert tail == (path.stat().st_size, 2, chain.last, "hash", 12)


def test_the_tail_of_an_empty_file_is_that_of_the_file_moved_away(tmp_path: Path) -> None:
    chain = Chain()
    (tmp_path / "audit.jsonl.1").write_bytes(chain.seal('"event":"start"'))

    sink = FileSink(tmp_path / "audit.jsonl", keep=2)
    tail = sink.tail()
    sink.close()

    assert tail == (0, 1, chain.last, "hash", 0)


def test_a_file_without_lines_has_no_tail(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"something else\n")
    sink = FileSink(path, keep=2)

    assert sink.tail().sequence == 0
    sink.close()


def test_a_directory_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.file"):
        FileSink(tmp_path / "none" / "audit.jsonl", keep=2)


def test_a_stream_whose_reader_is_full_takes_nothing_yet() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = StreamSink(writing)
    sent = 0
    while count := sink.write(bytes(65536)):
        sent += count

    assert len(os.read(reading, 1 << 20)) == sent
    assert sink.write(b"more\n") == 5
    os.close(reading)
    os.close(writing)


def test_syslog_gets_a_message_for_each_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        sink = SyslogSink(path)
        assert sink.write(b'{"seq":1}\n') == 10

        assert daemon.recv(1000) == b'<86>kmip-gateway: {"seq":1}'
        sink.close()


def test_a_syslog_daemon_that_is_missing_is_an_error(tmp_path: Path) -> None:
    sink = SyslogSink(tmp_path / "log")

    with pytest.raises(OSError, match="No such file"):
        sink.write(b"{}\n")


def test_a_syslog_daemon_that_has_gone_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = SyslogSink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        sink.write(b"1\n")
    path.unlink()
    with pytest.raises(OSError, match=r"refused|No such"):
        sink.write(b"2\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        sink.write(b"2\n")

        assert daemon.recv(1000).endswith(b"2")
        sink.close()


def test_a_removed_file_is_an_error_once_and_a_new_one_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, keep=2)
    sink.write(b"1\n")
    path.unlink()

    with pytest.raises(FileNotFoundError, match="removed with its lines"):
        sink.sync()
    sink.sync()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="removed with its lines"):
        sink.write(b"2\n")
    sink.write(b"2\n")
    sink.close()

    assert path.read_bytes() == b"2\n"


def test_without_its_directory_a_removed_file_stays_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    sink = FileSink(folder / "audit.jsonl", keep=2)
    (folder / "audit.jsonl").unlink()
    folder.rmdir()

    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            sink.write(b"1\n")
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        sink.write(b"1\n")
    sink.write(b"1\n")
    sink.close()

    assert (folder / "audit.jsonl").read_bytes() == b"1\n"
