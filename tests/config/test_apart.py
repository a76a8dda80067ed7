"""Loading in a child process: the same configuration and mistakes, and nothing of a key in this process."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.config import Config, load, load_apart
from gateway.config import apart as module
from gateway.errors import ConfigError
from tests.kit.config_files import SMALL, changed, mistakes_in, put_certificates, write


def test_a_configuration_is_the_same_as_without_a_child(folder: Path) -> None:
    path = write(folder, SMALL)
    assert load_apart(path) == load(path)


def test_mistakes_are_the_same_as_without_a_child(folder: Path) -> None:
    text = changed("server.key", "gateway-client.key")
    with pytest.raises(ConfigError) as refused:
        load_apart(write(folder, text))
    assert [it.rpartition("DIR")[2] for it in mistakes_in(folder, text)] == [
        it.rpartition(str(folder))[2] for it in refused.value.mistakes
    ]
    assert refused.value.log_format == "text"
    with pytest.raises(ConfigError) as refused:
        load_apart(write(folder, text + '[log]\nformat = "json"\n'))
    assert refused.value.log_format == "json"


def test_a_fault_while_loading_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(module, "load", fail)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: of the test"):
        load_apart(folder)


def test_a_child_that_dies_is_no_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda _path: os._exit(1))
    with pytest.raises(RuntimeError, match="without a result"):
        load_apart(folder)


def test_a_signal_to_the_child_does_not_run_the_callers_handler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to all processes of a supervisor must reach its core once."""
    path = write(folder, SMALL)
    reading, writing = os.pipe()

    def signalled(path: Path) -> Config:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(path)

    monkeypatch.setattr(module, "load", signalled)
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: os.write(writing, b"handled"))
    try:
        assert load_apart(path) == load(path)
        os.kill(os.getpid(), signal.SIGTERM)  # and this process goes on to receive signals
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"handled"


_LOADING = """
import sys
from pathlib import Path
from gateway.config import load_apart

path = Path(sys.argv[1])
config = load_apart(path)
kept = (path.parent / "gateway-client.key").read_bytes() if sys.argv[2] == "keep" else b""
print("loaded", flush=True)
sys.stdin.read()
"""


def copies_in_memory(path: Path, what: str) -> int:
    """Return how often a line of the identity's key is in the memory of a process that has loaded a configuration.

    With ``what`` "keep", the process keeps the whole key besides.
    """
    lines = (path.parent / "gateway-client.key").read_bytes().splitlines()[1:-1]
    command = [sys.executable, "-c", _LOADING, str(path), what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loaded\n"
        memory = writable_memory(process.pid)
        process.communicate(timeout=60)
    return sum(memory.count(line) for line in lines)


def writable_memory(process: int) -> bytes:
    """Return the bytes of a process that it can write."""
    parts = []
    with Path(f"/proc/{process}/maps").open() as maps, Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for found in re.finditer(r"(?m)^([0-9a-f]+)-([0-9a-f]+) rw", maps.read()):
            start, end = (int(number, 16) for number in found.groups())
            memory.seek(start)
            with suppress(OSError):
                parts.append(memory.read(end - start))
    return b"".join(parts)


def test_no_line_of_a_key_stays_in_memory(folder: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    (folder / "gateway-client.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "gateway-client.pem").write_bytes(certificate_for(key))
    path = write(folder, SMALL)
    assert copies_in_memory(path, "keep") > 0
    assert copies_in_memory(path, "nothing") == 0


def certificate_for(key: rsa.RSAPrivateKey) -> bytes:
    """Return a certificate in PEM that a key has signed for itself."""
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """As ``folder``, in a directory that every user can enter."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        put_certificates(folder, SMALL)
        yield folder


def test_files_are_read_as_the_gateways_user(open_folder: Path) -> None:
    """`check` says that the user can't read a key, which a reload would find out too late."""
    if os.geteuid():
        pytest.skip("only root can change its user")
    folder = open_folder
    path = write(folder, SMALL + '[gateway]\nuser = "nobody"\n')
    with pytest.raises(ConfigError) as refused:
        load_apart(path)
    assert [mistake.partition("can't")[2] for mistake in refused.value.mistakes] == [
        ' be read by user "nobody" (Permission denied); let the gateway\'s user read it'
    ] * 2
    for name in ("server.key", "gateway-client.key"):
        os.chown(folder / name, 65534, 65534)
    assert load_apart(path).gateway.user == "nobody"
    assert os.geteuid() == 0


def test_an_audit_file_that_the_gateways_user_cannot_write_is_a_mistake(open_folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can change its user")
    folder = open_folder
    for name in ("server.key", "gateway-client.key"):
        os.chown(folder / name, 65534, 65534)
    trail = folder / "audit.jsonl"
    path = write(folder, SMALL + '[gateway]\nuser = "nobody"\n[audit]\nto = "file"\n')
    expected = f"audit.file: {trail} can't be written; let the gateway's user write {{}}"
    with pytest.raises(ConfigError) as refused:
        load_apart(path)
    assert [mistake.split(": ", 2)[2] for mistake in refused.value.mistakes] == [expected.format(folder)]
    trail.touch()
    with pytest.raises(ConfigError) as refused:
        load_apart(path)
    assert [mistake.split(": ", 2)[2] for mistake in refused.value.mistakes] == [expected.format("it")]
    os.chown(trail, 65534, 65534)
    assert load_apart(path).audit.file == trail
