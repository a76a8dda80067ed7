"""Files with secrets that other users can read or change, and certificates that everybody can change."""

import os
import pwd
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
    mistakes_in,
    write,
)

WARN = '[gateway]\nkey_permissions = "warn"\n'


def warned(folder: Path, text: str = SMALL) -> list[str]:
    """Return the warnings about a configuration, with ``key_permissions`` "warn"."""
    return warnings(load(write(folder, text + WARN)), datetime.now(UTC))


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o600, None),
        (0o400, None),
        (0o660, "changed by its group"),
        (0o644, "read by every user of this machine"),
        (0o604, "read by every user of this machine"),
        (0o602, "changed by every user of this machine"),
        (0o666, "changed by every user of this machine"),
    ],
)
def test_a_private_key_open_to_other_users_is_refused_or_a_warning(folder: Path, mode: int, said: str | None) -> None:
    file = folder / "server.key"
    file.chmod(mode)
    but = "" if os.geteuid() else ", or 0640"
    told = f'listeners["kmip"].private_key: {file} can be {said} (mode {mode:04o}); chmod 0600 {file}{but}'

    assert warned(folder) == ([] if said is None else [told])
    if said is None:
        load(write(folder, SMALL))
    else:
        (mistake,) = mistakes_in(folder, SMALL)
        assert (
            mistake == told.replace(str(folder), "DIR") + '; if it must stay so, set gateway.key_permissions = "warn"'
        )


@pytest.mark.parametrize("mode", [0o640, 0o440])
@pytest.mark.parametrize("owner", [0, 65534])
def test_the_group_may_read_a_key_only_if_root_owns_it(folder: Path, mode: int, owner: int) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    file = folder / "server.key"
    file.chmod(mode)
    os.chown(file, owner, 65534)

    assert [line.partition("(")[0] for line in warned(folder)] == (
        [] if owner == 0 else [f'listeners["kmip"].private_key: {file} can be read by its group ']
    )


@pytest.mark.parametrize(("user", "is_known"), [("nobody", True), ("65534", True), ("daemon", False)])
def test_a_key_of_another_user_is_refused_if_the_gateways_user_is_known(
    folder: Path, user: str, is_known: bool
) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(folder / "server.key", pwd.getpwnam("nobody").pw_uid, 0)
    load(write(folder, SMALL))
    text = SMALL + f'[gateway]\nuser = "{user}"\n'
    if is_known:
        load(write(folder, text))
    else:
        (mistake,) = mistakes_in(folder, text)
        assert "server.key belongs to nobody, who can change it; chown it to root, or to the gateway's user" in mistake


@pytest.mark.parametrize("file", ["server.pem", "clients-ca.pem", "kms-ca.pem", "gateway-client.pem"])
def test_a_certificate_that_everybody_can_change_is_refused(folder: Path, file: str) -> None:
    (folder / file).chmod(0o664)
    load(write(folder, SMALL))
    (folder / file).chmod(0o646)
    (mistake,) = mistakes_in(folder, SMALL)
    assert f"DIR/{file} can be changed by every user of this machine (mode 0646); chmod o-w DIR/{file}" in mistake
    assert len(warned(folder)) == 1


@pytest.mark.parametrize(("marks", "is_used"), [("true", True), ("false", False)])
def test_a_mark_key_open_to_other_users_is_a_warning_if_used(folder: Path, marks: str, is_used: bool) -> None:
    key = folder / "mark.key"
    key.write_text("00" * 32)
    key.chmod(0o644)

    found = warned(folder, SMALL + f"[replication]\nmarks = {marks}\n")

    assert [warning.partition(":")[0] for warning in found] == ["replication.mark_key_file"] * is_used


def test_a_key_of_two_settings_is_one_warning(folder: Path) -> None:
    (folder / "server.key").chmod(0o666)
    second = SECOND_LISTENER.replace("second.pem", "server.pem").replace("second.key", "server.key")
    assert len(warned(folder, SMALL + second)) == 1
    assert len(mistakes_in(folder, SMALL + second)) == 1
