"""Files with keys and tokens in text."""

from pathlib import Path

import pytest

from gateway.config.key_files import audit_key, mark_keys, tokens_in
from tests.kit.wrong_files import put

KEY = "ab" * 32


def test_keys_and_tokens_stand_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(f"{KEY}\r\n\n{'cd' * 32}\r\n")
    assert mark_keys(file) == [b"\xab" * 32, b"\xcd" * 32]
    assert tokens_in(file) == [KEY, "cd" * 32]
    file.write_text(f"{KEY}\n")
    assert audit_key(file) == b"\xab" * 32


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "holds no keys for marks"),
        (b"\xff\xfe", "has no key in line 1"),
        (b"abc\n", "has no key in line 1"),
        (b"0" * 63, "has no key in line 1"),
        (b"0" * 64 + b"\nzz\n", "has no key in line 2"),
    ],
)
def test_other_content_is_refused_for_marks(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "mark.key").write_bytes(content)
    with pytest.raises(ValueError, match=rf"mark.key {found}; give one"):
        mark_keys(tmp_path / "mark.key")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\n", "holds no tokens"),
        (b"short\n", "has no token in line 1"),
        (KEY.encode() + b"\n\nshort\n", "has no token in line 3"),
        (b"\xe9" * 40, "has no token in line 1"),
    ],
)
def test_other_content_is_refused_for_tokens(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(ValueError, match=rf"tokens {found}; give one"):
        tokens_in(tmp_path / "tokens")


@pytest.mark.parametrize("read", [mark_keys, audit_key, tokens_in])
@pytest.mark.parametrize("kind", ["key", "encrypted-key", "certificate"])
def test_no_remedy_would_destroy_a_file_in_pem(tmp_path: Path, read: object, kind: str) -> None:
    put(tmp_path / "file", kind)
    assert callable(read)
    with pytest.raises(ValueError, match="must not be used here; name a file of its own") as refused:
        read(tmp_path / "file")
    assert "make it" not in str(refused.value)
    assert "give one" not in str(refused.value)


def test_a_missing_file_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    file = tmp_path / "my tokens"
    command = rf"make it with `\(umask 077; openssl rand -hex 32 > '{file}'\)`"
    for read in (audit_key, tokens_in):
        with pytest.raises(ValueError, match=f"there is no file {file}; {command}, or correct"):
            read(file)
