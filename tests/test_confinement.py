"""Rights that a process has lost: tried in processes of their own, which can't get them back."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.confinement import User, change_user, code_directories, find_user, landlock_version
from gateway.errors import ConfigError

needs_landlock = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")

_TRY = """
import json, os, signal, socket, subprocess, sys
from pathlib import Path
from gateway import confinement

def outcome(work):
    try:
        work()
    except PermissionError:
        return "refused"
    except OSError as error:
        return type(error).__name__
    return "done"

folder, port = Path(sys.argv[1]), int(sys.argv[2])

def bind():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

def connect():
    socket.create_connection(("127.0.0.1", port), 5).close()

def import_late():
    import xml.dom.minidom

works = {
    "read a key": lambda: (folder / "some.key").read_bytes(),
    "list": lambda: os.listdir(folder),
    "read passwd": lambda: Path("/etc/passwd").read_bytes(),
    "read memory": lambda: open("/proc/self/mem", "rb").close(),
    "write a key": lambda: (folder / "some.key").open("a").close(),
    "make a file": lambda: (folder / "new").write_text("x"),
    "remove a file": lambda: (folder / "old").unlink(),
    "make a file in the directory": lambda: (folder / "writable" / "new").write_text("x"),
    "run a program": lambda: subprocess.run(["/bin/true"]),
    "listen": bind,
    "connect": connect,
    "kill the parent": lambda: os.kill(os.getppid(), 0),
    "import": import_late,
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("some.key", "old"):
        (tmp_path / name).write_text("secret")
    (tmp_path / "writable").mkdir()
    return tmp_path


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def run(script: str, *arguments: object, **options: Any) -> Any:
    """Run a script in a process of its own, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tried(confine: str, folder: Path, port: int) -> dict[str, str]:
    script = _TRY + f"assert {confine}\nprint(json.dumps({{name: outcome(work) for name, work in works.items()}}))"
    found: dict[str, str] = run(script, folder, port)
    return found


def test_without_confinement_everything_works(folder: Path, port: int) -> None:
    assert set(tried("True", folder, port).values()) == {"done"}


@needs_landlock
def test_a_worker_opens_nothing_but_pythons_modules(folder: Path, port: int) -> None:
    found = tried("confinement.confine_worker()", folder, port)
    network = "refused" if landlock_version() >= 4 else "done"
    signals = "refused" if landlock_version() >= 6 else "done"
    special = {"import": "done", "listen": network, "connect": network, "kill the parent": signals}
    assert found == {name: special.get(name, "refused") for name in found}
    assert (folder / "some.key").read_text() == "secret"


@needs_landlock
def test_a_core_reads_and_connects_but_changes_no_file_elsewhere(folder: Path, port: int) -> None:
    found = tried("confinement.confine_core([folder / 'writable', folder / 'missing'])", folder, port)
    allowed = {"read a key", "list", "read passwd", "read memory", "make a file in the directory", "connect"}
    allowed |= {"kill the parent", "import"} | ({"listen"} if landlock_version() < 4 else set())
    assert found == {name: "done" if name in allowed else "refused" for name in found}


@needs_landlock
def test_a_core_without_a_supervisor_may_listen_for_listeners_that_are_added(folder: Path, port: int) -> None:
    found = tried("confinement.confine_core([folder / 'writable'], listens=True)", folder, port)
    assert (found["listen"], found["run a program"], found["make a file"]) == ("done", "refused", "refused")


@pytest.mark.parametrize("confine", ["confine_worker()", "confine_core([folder])"])
def test_a_kernel_without_landlock_is_told_apart(folder: Path, port: int, confine: str) -> None:
    without = "(setattr(confinement, 'landlock_version', lambda: 0), not confinement." + confine + ")[1]"
    assert set(tried(without, folder, port).values()) == {"done"}


@needs_landlock
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_older_versions_of_landlock_confine_what_they_can(folder: Path, port: int, version: int) -> None:
    if version > landlock_version():
        pytest.skip("this kernel's Landlock is older")
    older = f"(setattr(confinement, 'landlock_version', lambda: {version}), confinement.confine_worker())[1]"
    found = tried(older, folder, port)
    assert {found[name] for name in ("read a key", "make a file", "run a program", "remove a file")} == {"refused"}
    assert found["connect"] == ("refused" if version >= 4 else "done")


def test_only_code_may_be_read_by_a_worker() -> None:
    directories = code_directories()
    assert Path(os.__file__).parent in directories
    assert not [path for path in directories if path in Path.cwd().parents or path in {Path("/"), Path.home()}]


_HARDENED = """
import ctypes, json, resource
from gateway.confinement import harden
harden()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
}))
"""


def test_a_hardened_process_leaves_no_core_and_gets_no_privileges() -> None:
    assert run(_HARDENED) == {"dumpable": 0, "no_new_privileges": "1", "core": [0, 0]}


_CHANGED = """
import ctypes, json, os
from gateway.confinement import change_user, find_user
os.setgroups([0, 4, 20])
change_user(find_user("nobody", "GROUP"))
def back():
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "user": os.getresuid(), "group": os.getresgid(), "groups": os.getgroups(), "back": back(),
    "capabilities": status["CapEff"].strip(), "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
}))
"""


@needs_root
@pytest.mark.parametrize("group", ["", "daemon"])
def test_a_changed_user_has_one_group_and_no_way_back(group: str) -> None:
    nobody = find_user("nobody", group)
    with tempfile.TemporaryDirectory() as directory:
        found = run(_CHANGED.replace("GROUP", group), cwd=directory)
    assert found == {
        "user": [nobody.user] * 3,
        "group": [nobody.group] * 3,
        "groups": [],
        "back": False,
        "capabilities": "0" * 16,
        "dumpable": 0,
    }


_REFUSED = """
import json, os
from gateway.confinement import User, change_user
from gateway.errors import ConfigError
if os.geteuid() == 0:
    change_user(User(65534, 65534))
change_user(User(os.geteuid(), 1))
try:
    change_user(User(1, 1))
except ConfigError as error:
    print(json.dumps(error.mistakes))
"""


def test_only_root_can_change_its_user() -> None:
    (mistake,) = run(_REFUSED)
    assert mistake.startswith("gateway.user: only root can change its user, and this process has user ")
    assert mistake.endswith("; start it as root, or leave gateway.user out")


def test_users_and_groups_are_found_by_name_and_number() -> None:
    assert find_user("root", "") == find_user("0", "0") == User(0, 0)
    with pytest.raises(ValueError, match='no user "nobody-there"'):
        find_user("nobody-there", "")
    with pytest.raises(ValueError, match='no group "nobody-there"'):
        find_user("root", "nobody-there")


def test_a_process_of_the_user_stays_as_it_is() -> None:
    change_user(User(os.geteuid(), 1))
    assert os.getgid() == os.getegid()
    if os.geteuid():
        with pytest.raises(ConfigError):
            change_user(User(0, 0))
