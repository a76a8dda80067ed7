"""Warnings about files with secrets that other users can read or change."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.config import (
    load,
    warnings,
)
from tests.kit.config_files import (
    SECOND_LISTENER,
    SMALL,
    write,
)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o600, None),
        (0o400, None),
        (0o640, None),
        (0o440, None),
        (0o660, "changed by its group"),
        (0o644, "read by every user of this machine"),
        (0o604, "read by every user of this machine"),
        (0o602, "changed by every user of this machine"),
        (0o666, "changed by every user of this machine"),
    ],
)
def test_a_private_key_open_to_other_users_is_a_warning(folder: Path, mode: int, said: str | None) -> None:
    (folder / "server.key").chmod(mode)

    found = warnings(load(write(folder, SMALL)), datetime.now(UTC))

    file = folder / "server.key"
    told = f'listeners["kmip"].private_key: {file} can be {said} (mode {mode:04o}); chmod 0600 {file}, or 0640'
    assert found == ([] if said is None else [told])


@pytest.mark.parametrize(("marks", "warned"), [("true", True), ("false", False)])
def test_a_mark_key_open_to_other_users_is_a_warning_if_used(folder: Path, marks: str, warned: bool) -> None:
    key = folder / "mark.key"
    key.write_text("00" * 32)
    key.chmod(0o644)

    found = warnings(load(write(folder, SMALL + f"[replication]\nmarks = {marks}\n")), datetime.now(UTC))

    assert [warning.partition(":")[0] for warning in found] == ["replication.mark_key_file"] * warned


def test_a_key_of_two_settings_is_one_warning(folder: Path) -> None:
    (folder / "server.key").chmod(0o666)
    second = SECOND_LISTENER.replace("second.pem", "server.pem").replace("second.key", "server.key")
    assert len(warnings(load(write(folder, SMALL + second)), datetime.now(UTC))) == 1
