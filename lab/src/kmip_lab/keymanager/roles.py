"""Roles: which key managers of a cluster are masters, and how they replicate. They are in a file that is watched."""

import json
import os
from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, NonNegativeFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

_FILE_NAME: Final = "roles.json"
_MAX_SOCKET_PATH: Final = 107  # bytes, without the final zero


class Role(Enum):
    """The role of a key manager in its cluster; Query returns it as ServerType."""

    MASTER = "master"
    STANDBY = "standby"


class Access(Enum):
    """The operations that a key manager executes.

    FULL: all, as a master. READ_ONLY: all that do not write, as a standby that serves reads. INFORMATION_ONLY: Query
    and Discover Versions, as a standby.
    """

    FULL = auto()
    READ_ONLY = auto()
    INFORMATION_ONLY = auto()


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Link:
    """The replication from a master to one replica. Raises ValueError for invalid values.

    A change arrives ``delay`` seconds after it was made. On a ``synchronous`` link, a write is answered once the
    replica has it. If that takes ``timeout`` seconds, or the replica is down, the master answers without waiting, and
    waits again once the replica has caught up.
    """

    delay: NonNegativeFloat = 0.0
    synchronous: bool = False
    timeout: NonNegativeFloat = 1.0


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Member:
    """A key manager of a cluster.

    ``links``, by the replica's name, apply while it is a master; to replicas without a link it replicates
    asynchronously and without delay. A standby refuses all operations but Query and Discover Versions; with
    ``serves_reads`` it refuses only writes, as some vendors' clones do.
    """

    role: Role = Role.STANDBY
    links: dict[str, Link] = field(default_factory=dict)
    serves_reads: bool = False


Roles = dict[str, Member]
"""The key managers of a cluster, by name."""

_FILE: Final = TypeAdapter(Roles)


def roles_file(directory: Path) -> Path:
    """Return the path of the roles of the cluster in this directory."""
    return directory / _FILE_NAME


def socket_path(directory: Path, name: str) -> Path:
    """Return the path of the Unix socket on which a key manager of this cluster receives changes."""
    return directory / f"{name}.socket"


def roles_file_state(directory: Path) -> tuple[int, int, int] | None:
    """Return a value that differs after each change of the roles' file; None if there is no file."""
    try:
        state = os.stat(directory / _FILE_NAME)  # noqa: PTH116 - faster than pathlib, and called for every request
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size


def read_roles(directory: Path, name: str | None = None) -> Roles:
    """Return the roles of a cluster.

    Raises OSError; and ValueError, with one line, for an invalid file, and if it has no key manager ``name``.
    """
    try:
        roles = _FILE.validate_json(roles_file(directory).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{location}: {first['msg']}" if location else first["msg"]) from None
    if name is not None and name not in roles:
        raise ValueError(f"there is no key manager {name} in this cluster")
    for key_manager, member in roles.items():
        if len(os.fsencode(socket_path(directory, key_manager))) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"{socket_path(directory, key_manager)} is longer than {_MAX_SOCKET_PATH} bytes, a Unix socket's limit"
            )
        for replica in member.links:
            if replica == key_manager or replica not in roles:
                raise ValueError(
                    f"{key_manager} can't have a link to {replica}: it must name a second key manager of this cluster"
                )
    return roles


def write_roles(directory: Path, roles: Mapping[str, Member]) -> None:
    """Replace the roles of a cluster in one step, a line for each key manager. Raises OSError."""
    written = _FILE.dump_python(dict(roles), mode="json", exclude_defaults=True)
    # The role is always written, and first, so that a shell script can change it with sed.
    lines = (json.dumps({name: {"role": roles[name].role.value, **member}})[1:-1] for name, member in written.items())
    path = roles_file(directory)
    new = path.with_name(f".{path.name}.new")
    new.write_text("{" + ",\n ".join(lines) + "}\n")
    new.replace(path)


def promote(directory: Path, name: str, *, instead_of: str | None = None) -> None:
    """Make a standby a master and, in the same step, ``instead_of`` a standby.

    Raises KeyError if the cluster has no key manager of such a name, OSError, and ValueError for an invalid file.
    """
    roles = read_roles(directory)
    if instead_of is not None:
        roles[instead_of] = replace(roles[instead_of], role=Role.STANDBY)
    roles[name] = replace(roles[name], role=Role.MASTER)
    write_roles(directory, roles)


def two_plus_two(near: float = 0.0, far: float = 0.0, *, serves_reads: bool = False) -> Roles:
    """Return two sites, each of a master and its synchronous standby: the application note's Two-plus-two deployment.

    Changes take ``near`` seconds within a site and ``far`` seconds between the sites. Standbys have links, too, so that
    a promoted standby also replicates synchronously within its site.
    """
    names = [f"{site}-{number:03}" for site in ("atlanta", "london") for number in (1, 2)]
    roles = {}
    for name in names:
        site, _, number = name.partition("-")
        links = {
            replica: Link(near, synchronous=True) if replica.startswith(site) else Link(far)
            for replica in names
            if replica != name
        }
        role = Role.MASTER if number == "001" else Role.STANDBY
        roles[name] = Member(role, links, serves_reads)
    return roles
