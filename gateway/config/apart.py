"""Loading in a child process: no byte of a private key that is read and checked stays in the memory of the caller.

A supervisor and its TLS workers, which are forked from it, would otherwise hold remains of keys of all identities.
"""

import os
import pickle
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config.loading import load
from gateway.config.model import Config
from gateway.confinement import change_user, find_user
from gateway.errors import ConfigError


class _Refusal(NamedTuple):
    """A ConfigError on its way between processes."""

    mistakes: list[str]
    log_format: str


def load_apart(path: Path) -> Config:
    """Read a configuration as ``load`` does, in a child process. Raises ConfigError.

    If the configuration names a user and this process is root's, the files are read as that user, who must be able to
    read them again at a reload.
    """
    reading, writing = os.pipe()
    for file in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the disk is full
            file.flush()
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, signal.valid_signals()
    )  # the caller's handlers are not the child's
    process = -1
    try:
        process = os.fork()
    finally:
        if process:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not process:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as file:
                pickle.dump(_loaded(path), file)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as file:
            data = file.read()
    finally:
        os.waitpid(process, 0)
    found: Config | _Refusal | Exception = (
        pickle.loads(data) if data else RuntimeError("loading the configuration ended without a result")  # noqa: S301 - our own child's
    )
    if isinstance(found, _Refusal):
        raise ConfigError(found.mistakes, found.log_format)
    if isinstance(found, Exception):
        raise found
    return found


def _loaded(path: Path) -> Any:
    """Return the configuration, its mistakes, or the exception that loading it has raised."""
    try:
        config = load(path)
        user = config.gateway.user
        if user and os.geteuid() == 0:
            change_user(find_user(user, config.gateway.group))
            config = load(path)
    except ConfigError as error:
        return _Refusal(error.mistakes, error.log_format)
    except Exception as error:  # noqa: BLE001 - raised where the caller sees it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return config
