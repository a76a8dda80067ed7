"""Files that settings name, and what is said if one can't be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config.reading import FileError, MissingFileError, read_file
from tests.kit.wrong_files import put


def fault(path: Path) -> str:
    with pytest.raises(FileError) as refused:
        read_file(path, "a file of keys")
    text = str(refused.value)
    assert text.startswith(f"{path} ") is text.endswith(refused.value.fault)
    return text.replace(str(path.parent), "DIR")


def test_a_file_is_read_whole_up_to_a_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    assert read_file(file, "a file", most=1000) == b"x" * 1000
    with pytest.raises(FileError, match=r"file has more than 0 MiB; give the path of a file$"):
        read_file(file, "a file", most=999)
    with pytest.raises(FileError, match=r"file has more than 0 MiB; split it$"):
        read_file(file, "a file", most=999, if_too_large="split it")


def test_a_missing_file_is_a_mistake_with_the_way_to_make_it(tmp_path: Path) -> None:
    correct = "correct the path (a relative path begins in the directory of the configuration)"
    with pytest.raises(MissingFileError) as refused:
        read_file(tmp_path / "none", "a file")
    assert str(refused.value) == f"there is no file {tmp_path}/none; {correct}"
    assert refused.value.fault == f"there is no such file; {correct}"
    with pytest.raises(MissingFileError, match=r"none; make it, or correct the path"):
        read_file(tmp_path / "none", "a file", if_missing="make it")
    for name in ("~", "$HOME"):
        with pytest.raises(MissingFileError, match=r'; write the path in full, without "~" and variables$'):
            read_file(tmp_path / name / "none", "a file", if_missing="make it")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("directory", "is a directory; give the path of a file of keys"),
        ("pipe", "is not a file; give the path of a file of keys"),
        ("broken-link", "is a link to gone, and there is no such file; correct the link"),
        ("looping-link", "can't be read (Too many levels of symbolic links); correct the path"),
        ("large", "has more than 16 MiB; give the path of a file of keys"),
    ],
)
def test_odd_files_are_refused_and_nothing_waits_for_them(tmp_path: Path, kind: str, expected: str) -> None:
    put(tmp_path / "odd", kind)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert fault(tmp_path / "odd") == f"DIR/odd {expected}"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pipe_that_a_shell_has_made_is_read_to_its_end() -> None:
    """As of `kmip-gateway check <(...)`, and of `... | kmip-gateway check /dev/stdin`."""
    code = "from pathlib import Path; from gateway.config.reading import read_file as read;"
    code += "print(read(Path('/dev/stdin'), 'a file'))"
    writer = ["sh", "-c", f'(printf one; sleep 0.2; printf two) | {sys.executable} -c "{code}"']
    done = subprocess.run(writer, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "b'onetwo'\n"


def test_a_file_without_permission_is_named_with_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since tests may run as root, who may read everything."""

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    assert fault(tmp_path / "file") == (
        "DIR/file can't be read by user 4000000000 (Permission denied); let the gateway's user read it"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert 'by user "root" (' in fault(tmp_path / "file")
