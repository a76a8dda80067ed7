"""Permissions of files: secrets that other users can read or change, and certificates that everybody can change.

The rule for secrets is PostgreSQL's: mode 0600 for a file of the gateway's user, or 0640 for a file of root's, which
the gateway's user reads as a member of its group. A certificate or a CA may be read by everybody, but whoever can
change a CA can let clients in. ``gateway.key_permissions`` says if such a file is a mistake, or only a warning.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.config.model import LISTS, SECTIONS, Config, Table

#: Settings that name a file with a secret, by section.
SECRETS: Final = {
    "listeners": ("passphrase_file", "private_key"),
    "identities": ("passphrase_file", "private_key", "issuing_ca_passphrase_file", "issuing_ca_key", "password_file"),
    "admin": ("private_key", "token_file"),
    "replication": ("mark_key_file",),
    "audit": ("key_file",),
}
#: Settings that name a file of certificates, by section.
CERTIFICATES: Final = {
    "listeners": ("certificate", "client_ca"),
    "backends": ("ca",),
    "identities": ("certificate", "client_issuer", "issuing_ca"),
    "admin": ("certificate", "client_ca"),
}
_OF_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OF_OTHERS_BUT_READING_GROUP: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO
_CHANGED: Final = stat.S_IWGRP | stat.S_IWOTH
_BY_EVERYBODY: Final = stat.S_IROTH | stat.S_IWOTH


class ExposedFile(NamedTuple):
    """A file that users besides the gateway's can read or change, and must not. ``owner`` is set if it is too much."""

    setting: str
    file: Path
    mode: int
    is_roots: bool = False
    owner: str = ""

    def remedy(self) -> str:
        """Return who can read or change the file, and the command that restricts this."""
        if self.owner:
            return f"belongs to {self.owner}, who can change it; chown it to root, or to the gateway's user"
        owners = "every user of this machine" if self.mode & _BY_EVERYBODY else "its group"
        done = "changed" if self.mode & _CHANGED else "read"
        if not self.is_secret:
            return f"can be changed by {owners} (mode {self.mode:04o}); chmod o-w {self.file}"
        but = ", or 0640" if self.is_roots else ""
        return f"can be {done} by {owners} (mode {self.mode:04o}); chmod 0600 {self.file}{but}"

    @property
    def is_secret(self) -> bool:
        """True for a key, False for a certificate."""
        return self.setting.rpartition(".")[2] not in {key for keys in CERTIFICATES.values() for key in keys}


class NamedFile(NamedTuple):
    """A file that a setting names; ``setting`` is the setting's path, for people or for a mistake."""

    setting: Any
    file: Path
    is_secret: bool


def exposed(config: Config) -> list[ExposedFile]:
    """Return the files that other users can read or change, in the order of the configuration, each once."""
    own = trusted_users(config.gateway.user)
    found: dict[Path, ExposedFile] = {}
    for setting, file, is_secret in _named_files(config):
        if file not in found and (it := exposure(setting, file, own, is_secret=is_secret)) is not None:
            found[file] = it
    return list(found.values())


def _named_files(config: Config) -> Iterator[NamedFile]:
    for section in SECTIONS:
        tables = getattr(config, section) if section in LISTS else (getattr(config, section),)
        for table in tables:
            where = f'{section}["{table.name}"]' if section in LISTS else section
            if section == "replication" and not config.replication.marks:
                continue
            for settings, is_secret in ((SECRETS, True), (CERTIFICATES, False)):
                yield from _files_of(table, where, settings.get(section, ()), is_secret=is_secret)


def _files_of(table: Table, where: str, keys: tuple[str, ...], *, is_secret: bool) -> Iterator[NamedFile]:
    for key in keys:
        if (file := getattr(table, key)) is not None:
            yield NamedFile(f"{where}.{key}", file, is_secret)


def trusted_users(user: str) -> frozenset[int] | None:
    """Return the users that may own a secret: root and the gateway's; None for any, if the latter is not known.

    ``user`` is ``gateway.user``. Root without that setting may be checking a file for a service with another user.
    """
    if user:
        with suppress(KeyError):
            return frozenset({0, int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid})
        return None
    return frozenset({0, os.geteuid()}) if os.geteuid() else None


def exposure(setting: str, file: Path, own: frozenset[int] | None, *, is_secret: bool) -> ExposedFile | None:
    """Return the finding about a file, or None if there is none, or no such file (yet)."""
    try:
        status = file.stat()
    except OSError:
        return None
    mode, is_roots = stat.S_IMODE(status.st_mode), status.st_uid == 0
    if not is_secret:
        return ExposedFile(setting, file, mode) if mode & stat.S_IWOTH else None
    if own is not None and status.st_uid not in own:
        return ExposedFile(setting, file, mode, owner=_name_of(status.st_uid))
    too_much = _OF_OTHERS_BUT_READING_GROUP if is_roots else _OF_OTHERS
    return ExposedFile(setting, file, mode, is_roots) if mode & too_much else None


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
