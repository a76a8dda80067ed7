"""Builds of peers, kept in ``.peers`` until something that they are made from changes."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.peers.run import PeerError

BUILD_TIMEOUT: Final = 900.0  # s
#: Words in the message of a tool that has fetched something else than the lock file says.
_TAMPERED: Final = ("match the hashes", "require-hashes", "checksum", "security error")


class NotFetchedError(PeerError):
    """The source of a peer could not be fetched, as on a machine without a network."""


def _nothing(_: Path) -> None:
    """Fetch or build nothing."""


@dataclass(frozen=True)
class Software:
    """A peer's name and version, and how it is fetched and built in a directory of its own.

    ``missing`` returns the tool that this machine lacks, or None. ``fetch`` may fail for want of a network; ``build``
    then needs none. ``sources`` are the files, or texts, from which the build is made.
    """

    name: str
    version: str
    language: str
    missing: Callable[[], str | None] = lambda: None
    fetch: Callable[[Path], None] = _nothing
    build: Callable[[Path], None] = _nothing
    sources: tuple[Path | str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A digest of the version and the sources: a build with another one is out of date."""
        digest = hashlib.sha256(f"{self.name}\n{self.version}\n".encode())
        for source in self.sources:
            content = source.read_bytes() if isinstance(source, Path) else source.encode()
            digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()


def built(software: Software, builds: Path) -> Path:
    """Return the directory of a build, which is made anew if it is out of date.

    Another run in the same clone waits for the build. Raises NotFetchedError if the source can't be fetched, and
    PeerError if it is not the source that the lock file names, or can't be built.
    """
    build = builds / software.name.replace(" ", "-")
    build.mkdir(parents=True, exist_ok=True)
    stamp = build / ".built"
    with _locked(build.with_name(f"{build.name}.lock")):
        if not stamp.exists() or stamp.read_text() != software.fingerprint:
            stamp.unlink(missing_ok=True)
            _fetch(software, build)
            software.build(build)
            stamp.write_text(software.fingerprint)
    return build


def _fetch(software: Software, build: Path) -> None:
    try:
        software.fetch(build)
    except PeerError as error:
        if any(word in str(error).casefold() for word in _TAMPERED):
            raise
        raise NotFetchedError(str(error)) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
