"""Runs a program of a peer in a process group of its own, with bounds on its time and on what it prints."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: Bytes that a program may print on its standard output, and on its standard error.
OUTPUT_LIMIT: Final = 4 << 20


class PeerError(Exception):
    """A peer could not be fetched or built, or its driver failed."""


def run(command: Sequence[str], directory: Path, timeout: float, **environment: str) -> str:
    """Return the standard output of a command; bytes that are not UTF-8 stand as a backslash, ``x`` and their number.

    Raises PeerError if the command fails, takes longer than ``timeout`` s, or prints more than ``OUTPUT_LIMIT`` bytes.
    No process of the command's group outlives the call.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment or None,
            start_new_session=True,
        )
    except OSError as error:
        raise PeerError(f"{name}: {error.strerror}") from error
    with _killed(process):
        output, errors = _read(process, name, timeout)
    if process.returncode != 0:
        raise PeerError(f"{' '.join([name, *command[1:4]])} ended with {process.returncode}: {errors.strip()[-1000:]}")
    return output


def _read(process: subprocess.Popen[bytes], name: str, timeout: float) -> tuple[str, str]:
    """Return all that a process prints until its end."""
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + timeout
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, errors)
        while selector.get_map():
            ready = selector.select(max(end - time.monotonic(), 0))
            if not ready:
                raise PeerError(f"{name} took longer than {timeout:g} s")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data)
                if len(key.data) > OUTPUT_LIMIT:
                    raise PeerError(f"{name} printed more than {OUTPUT_LIMIT:,} bytes")
    try:
        process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} took longer than {timeout:g} s") from None
    return output.decode(errors="backslashreplace"), errors.decode(errors="backslashreplace")


@contextmanager
def _killed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process group of a process with the block, and close the pipes."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
