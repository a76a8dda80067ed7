"""Measurements one after the other: with the keys that they need, and with progress shown."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.lab.speed.making import Maker
from gateway.lab.speed.operations import Keys
from gateway.lab.speed.result import Measurement
from gateway.lab.speed.running import measure
from gateway.lab.speed.target import Target
from gateway.lab.speed.worker import Plan


class Campaign:
    """Several measurements of one target, with the keys for them; progress is shown on stderr.

    ``warnings`` holds a line for each kind of trouble beside the measurements.
    """

    def __init__(self, target: Target, sessions: str, repeat: int, *, keep: bool) -> None:
        self.warnings: list[str] = []
        self._target = target
        self._sessions = sessions
        self._repeat = repeat
        self._keep = keep
        self._maker = Maker(target)

    def all(self, names: Sequence[str], clients: Sequence[int]) -> list[Measurement]:
        """Measure each operation with each number of clients. Raises TroubleError, ClientDiedError."""
        try:
            keys = self._maker.prepare(names)
            with _progress() as progress:
                return [self._one(name, count, keys, progress) for name in names for count in clients]
        finally:
            self._tidy()

    def _one(self, name: str, clients: int, keys: Keys, progress: Progress) -> Measurement:
        title = f"{name}, {clients} {'client' if clients == 1 else 'clients'}"
        task = progress.add_task(title, total=clients * self._repeat)
        plan = Plan(self._target, name, self._repeat, self._sessions, keys)
        measurement, made = measure(plan, clients, lambda done: progress.update(task, completed=done))
        self._maker.made += made
        return measurement

    def _tidy(self) -> None:
        if self._keep or not self._maker.made:
            return
        with _progress() as progress:
            task = progress.add_task("destroying the keys made", total=len(self._maker.made))
            failures = self._maker.destroy(lambda: progress.advance(task))
        self.warnings += [f"keys that could not be destroyed: {count} ({kind})" for kind, count in failures.items()]

    def as_json(self, measurements: Iterable[Measurement]) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "addresses": [str(address) for address in self._target.addresses],
            "kmip_version": "{}.{}".format(*self._maker.version),
            "discover": self._target.discover,
            "measurements": [one.as_json() for one in measurements],
            "warnings": self.warnings,
        }


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
