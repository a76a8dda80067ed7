"""Roles: which key managers of a cluster are masters, and how each replicates to the others. A file that is watched."""

import json
import os
from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, NonNegativeFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

_FILE_NAME: Final = "roles.json"
_LONGEST: Final = 107  # bytes of a Unix socket's name, which end with a zero


class Role(Enum):
    """What a key manager is; Query tells it."""

    MASTER = "master"
    STANDBY = "standby"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Link:
    """How a master replicates to one other key manager; raises ValueError for what makes no sense.

    A change gets there ``delay`` seconds after it was made. Where the link is ``synchronous``, a write is answered once
    the other has it, unless that takes ``patience`` seconds or the other is not there: then the master goes on alone,
    and waits for the other again once that has caught up.
    """

    delay: NonNegativeFloat = 0.0
    synchronous: bool = False
    patience: NonNegativeFloat = 1.0


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Member:
    """One key manager of a cluster.

    ``links`` are those that it has as a master, by name; to all others it replicates asynchronously and at once. A
    standby refuses all but Query and Discover Versions; with ``serves_reads`` it refuses changes only, as some vendors'
    clones do.
    """

    role: Role = Role.STANDBY
    links: dict[str, Link] = field(default_factory=dict)
    serves_reads: bool = False


Roles = dict[str, Member]
"""The key managers of a cluster, by name."""

_FILE: Final = TypeAdapter(Roles)


def roles_file(directory: Path) -> Path:
    """Where the roles of the cluster in this directory are written."""
    return directory / _FILE_NAME


def socket_path(directory: Path, name: str) -> Path:
    """Where a key manager of the cluster in this directory takes changes."""
    return directory / f"{name}.socket"


def roles_state(directory: Path) -> tuple[int, int, int] | None:
    """What is another after every change of the roles' file; None where there is none."""
    try:
        state = os.stat(directory / _FILE_NAME)  # noqa: PTH116 - for every request
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size


def read_roles(directory: Path, name: str | None = None) -> Roles:
    """The roles of a cluster, which must know a key manager of this name. Raises OSError and one-line ValueError."""
    try:
        roles = _FILE.validate_json(roles_file(directory).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    if name is not None and name not in roles:
        raise ValueError(f"there is no {name} in this cluster")
    for one, member in roles.items():
        if len(os.fsencode(socket_path(directory, one))) > _LONGEST:
            raise ValueError(
                f"{socket_path(directory, one)} is longer than the {_LONGEST} bytes of a Unix socket's name"
            )
        for other in member.links:
            if other == one or other not in roles:
                raise ValueError(f"{one} can't have a link to {other}: that is no other key manager of this cluster")
    return roles


def write_roles(directory: Path, roles: Mapping[str, Member]) -> None:
    """Write the roles of a cluster, a line for each key manager; who watches sees the old ones or the new ones."""
    written = _FILE.dump_python(dict(roles), mode="json", exclude_defaults=True)
    # The role comes first and always, so that a shell's sed finds it.
    lines = (json.dumps({name: {"role": roles[name].role.value, **member}})[1:-1] for name, member in written.items())
    path = roles_file(directory)
    new = path.with_name(f".{path.name}.new")
    new.write_text("{" + ",\n ".join(lines) + "}\n")
    new.replace(path)


def promote(directory: Path, name: str, *, instead_of: str | None = None) -> None:
    """Make a standby of a cluster the master, and perhaps another one standby in the same stroke.

    Raises KeyError where one of them is not of this cluster.
    """
    roles = read_roles(directory)
    if instead_of is not None:
        roles[instead_of] = replace(roles[instead_of], role=Role.STANDBY)
    roles[name] = replace(roles[name], role=Role.MASTER)
    write_roles(directory, roles)


def two_plus_two(near: float = 0.0, far: float = 0.0, *, serves_reads: bool = False) -> Roles:
    """Two sites of a master and its synchronous standby: the Two-plus-two deployment of the application note.

    Changes take ``near`` seconds within a site and ``far`` seconds between the two. Links are the same whoever is
    master, so that a standby that is promoted replicates synchronously within its site, too.
    """
    names = [f"{site}-{number:03}" for site in ("atlanta", "london") for number in (1, 2)]
    roles = {}
    for name in names:
        site, _, number = name.partition("-")
        links = {
            other: Link(near, synchronous=True) if other.startswith(site) else Link(far)
            for other in names
            if other != name
        }
        role = Role.MASTER if number == "001" else Role.STANDBY
        roles[name] = Member(role, links, serves_reads)
    return roles
