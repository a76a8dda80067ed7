"""Confinement: take rights from a process of the gateway that it does not need, by calls to the Linux kernel.

``harden`` comes first, before any key is read: no core dumps, no memory for other processes of the same user, no new
privileges. ``change_user`` comes after the listening sockets. ``confine_core`` and ``confine_worker`` come last: they
use Landlock, by three system calls that no library in use here has. Everything is inherited by child processes, and
nothing can be taken back.

Landlock restricts what is opened from then on; descriptors that are open stay as they are. There is no filter of system
calls (seccomp) here: the service manager and the container's runtime have better ones.
"""

import ctypes
import encodings.idna  # Python loads these two late: for a name to be resolved, and for a file to be read
import encodings.utf_8_sig  # noqa: F401 - perhaps they can't be read then
import grp
import os
import pwd
import resource
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import ConfigError

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
#: The numbers of these system calls are the same on all architectures.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # flag of landlock_create_ruleset
_PATH_BENEATH: Final = 1  # type of rule

# Rights on files, linux/landlock.h; in brackets the version of the interface that has a right for the first time.
_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE: Final = 0b1111111 << 6  # devices, directories, files, sockets, pipes, symbolic links
_MAKE_REG: Final = 1 << 8
_MAKE_SOCK: Final = 1 << 9
_REFER: Final = 1 << 13  # (2)
_TRUNCATE: Final = 1 << 14  # (3)
_IOCTL_DEV: Final = 1 << 15  # (5)
_READ: Final = _READ_FILE | _READ_DIR
_FIRST: Final = _EXECUTE | _WRITE_FILE | _READ | _REMOVE_DIR | _REMOVE_FILE | _MAKE  # (1)
_SINCE: Final = {2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
#: Rights that make and change the files of one directory.
_CHANGE_FILES: Final = _WRITE_FILE | _TRUNCATE | _MAKE_REG | _MAKE_SOCK | _REMOVE_FILE

_BIND_TCP: Final = 1 << 0  # (4)
_CONNECT_TCP: Final = 1 << 1  # (4)
_ABSTRACT_SOCKETS: Final = 1 << 0  # (6)
_SIGNALS: Final = 1 << 1  # (6)


class _RulesetAttributes(ctypes.Structure):
    """struct landlock_ruleset_attr. A kernel takes as many bytes of it as its version of the interface has."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _c_library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _checked(result: int) -> int:
    """Return the result of a system call. Raises OSError if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def harden() -> None:
    """Turn core dumps off, close this process's memory to others, and refuse all new privileges (setuid, capabilities).

    To be called again after the user was changed, which resets the second. A debugger needs root from then on. Raises
    OSError.
    """
    with suppress(OSError, ValueError):  # a service manager may forbid the call; the next one suffices
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = _c_library()
    zero = ctypes.c_ulong(0)
    _checked(library.prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero))
    _checked(library.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero))


class User(NamedTuple):
    """The numbers of a user and of a group."""

    user: int
    group: int


def find_user(user: str, group: str) -> User:
    """Return the numbers of a user and a group, by names or numbers; "" is the user's own group.

    Raises ValueError, with the text of a mistake, for a user or group that this machine does not know.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f'this machine has no user "{user}"; make one (useradd --system), or correct it') from None
    if not group:
        return User(entry.pw_uid, entry.pw_gid)
    try:
        found = grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)
    except KeyError:
        raise ValueError(f'this machine has no group "{group}"; make one (groupadd --system), or correct it') from None
    return User(entry.pw_uid, found.gr_gid)


def change_user(user: User) -> None:
    """Become this user for good, with this group and no other. Raises ConfigError unless started as root.

    Nothing happens if this process has the user already, as in a container.
    """
    if os.getuid() == os.geteuid() == user.user:
        return
    if os.geteuid() != 0:
        raise ConfigError(
            [
                (
                    f"gateway.user: only root can change its user, and this process has user {os.geteuid()}; start it"
                    " as root, or leave gateway.user out"
                )
            ]
        )
    os.setgroups([])
    os.setresgid(user.group, user.group, user.group)
    os.setresuid(user.user, user.user, user.user)
    harden()


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 if there is none, or if it is turned off."""
    found = _c_library().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return max(int(found), 0)


def confine_core(writable: Iterable[Path], *, listens: bool = False) -> bool:
    """Forbid this process to run programs, to listen on further TCP ports, and to write outside of these directories.

    With ``listens``, it may listen on further ports: a reload may add listeners. It may read all files that its user
    can read: a reload may name any. Return False if the kernel can't do this. To be called before any thread. Raises
    OSError.
    """
    version = landlock_version()
    rights = dict.fromkeys(writable, _CHANGE_FILES)
    return _restrict(version, _all_rights(version) & ~(_READ | _IOCTL_DEV), rights, network=0 if listens else _BIND_TCP)


def confine_worker() -> bool:
    """Forbid this process every file but Python's own modules, every TCP connection, and signals to other processes.

    Python may import a module late, and shows lines of code in tracebacks; it can only read them. Return False if the
    kernel can't do this. To be called before any thread is started. Raises OSError.
    """
    version = landlock_version()
    rights = dict.fromkeys(code_directories(), _READ)
    return _restrict(
        version,
        _all_rights(version),
        rights,
        network=_BIND_TCP | _CONNECT_TCP,
        scoped=_ABSTRACT_SOCKETS | _SIGNALS,
    )


def code_directories() -> list[Path]:
    """Return the directories of Python's library, of installed packages, and of the gateway itself."""
    paths = sysconfig.get_paths()
    return [*{Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}, Path(__file__).parent]


def _all_rights(version: int) -> int:
    """Return the rights on files that a version of the interface knows."""
    rights = _FIRST
    for since, right in _SINCE.items():
        rights |= right if version >= since else 0
    return rights


def _restrict(version: int, handled: int, allowed: Mapping[Path, int], *, network: int, scoped: int = 0) -> bool:
    """Restrict this process to the ``allowed`` rights, of those that are ``handled``. Return False without Landlock."""
    if version < 1:
        return False
    library = _c_library()
    attributes = _RulesetAttributes(handled, network if version >= 4 else 0, scoped if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(
        library.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    )
    try:
        for directory, rights in allowed.items():
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # of no use to this process anyway
                _allow(library, ruleset, directory, rights & handled)
        _checked(library.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return True


def _allow(library: ctypes.CDLL, ruleset: int, directory: Path, rights: int) -> None:
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights, parent)
        _checked(
            library.syscall(
                _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
            )
        )
    finally:
        os.close(parent)
