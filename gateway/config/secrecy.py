"""Permissions of files with secrets: private keys, and the key of the marks.

The owner may read and write a secret, and the group may read it: distributions share keys among services with mode
0640 and a group for that purpose. Wider permissions are a warning and no mistake: in some containers, a mounted secret
has no other mode.
"""

import stat
from pathlib import Path
from typing import Final, NamedTuple

from gateway.config.model import Config

_TOO_MUCH: Final = stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


class ExposedFile(NamedTuple):
    """A file with a secret that users besides its owner can read or change; reading by its group does not count."""

    setting: str
    file: Path
    mode: int

    def remedy(self) -> str:
        """Return who can read or change the file, and the command that restricts this."""
        owners = "its group" if not self.mode & (stat.S_IROTH | stat.S_IWOTH) else "every user of this machine"
        done = "changed" if self.mode & (stat.S_IWGRP | stat.S_IWOTH) else "read"
        return f"can be {done} by {owners} (mode {self.mode:04o}); chmod 0600 {self.file}, or 0640"


def exposed(config: Config) -> list[ExposedFile]:
    """Return the files with secrets that other users can read or change, in the order of the configuration."""
    secrets = [(f'listeners["{listener.name}"].private_key', listener.private_key) for listener in config.listeners]
    secrets += [(f'identities["{identity.name}"].private_key', identity.private_key) for identity in config.identities]
    if config.replication.marks:
        secrets.append(("replication.mark_key_file", config.replication.mark_key_file))
    found: dict[Path, ExposedFile] = {}
    for setting, file in secrets:
        if file not in found and (mode := _mode(file)) & _TOO_MUCH:
            found[file] = ExposedFile(setting, file, mode)
    return list(found.values())


def _mode(file: Path) -> int:
    """Return the permission bits; 0 if there is no such file (yet)."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return 0
