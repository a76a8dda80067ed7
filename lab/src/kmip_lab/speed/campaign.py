"""Measurements one after the other: with the keys that they need, and with progress shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kmip_lab.speed.making import Maker
from kmip_lab.speed.operations import OPERATIONS, Keys
from kmip_lab.speed.result import Measurement
from kmip_lab.speed.running import measure
from kmip_lab.speed.target import Target
from kmip_lab.speed.worker import Plan


class Campaign:
    """Several measurements of one target, with the keys for them; progress is shown on stderr.

    ``measurements`` are those that have come to their end. ``warnings`` holds a line for each kind of trouble beside
    them.
    """

    def __init__(self, target: Target, sessions: str, repeat: int, *, keep: bool) -> None:
        self.measurements: list[Measurement] = []
        self.warnings: list[str] = []
        self._target = target
        self._sessions = sessions
        self._repeat = repeat
        self._keep = keep
        self._maker = Maker(target)

    def all(self, names: Sequence[str], clients: Sequence[int]) -> None:
        """Measure each operation with each number of clients, and take away the keys that were made.

        Raises TroubleError, ClientDiedError and KeyboardInterrupt: what was measured until then is there.
        """
        try:
            keys = self._maker.prepare(names)
            with _progress() as progress:
                for name in names:
                    for count in clients:
                        self._one(name, count, keys, progress)
        finally:
            self._tidy()

    def _one(self, name: str, clients: int, keys: Keys, progress: Progress) -> None:
        title = f"{name}, {clients} {'client' if clients == 1 else 'clients'}"
        task = progress.add_task(title, total=clients * self._repeat)
        plan = Plan(self._target, name, self._repeat, self._sessions, keys)
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done = count
            progress.update(task, completed=count)

        try:
            measurement, made = measure(plan, clients, tell)
        except BaseException:
            if OPERATIONS[name].makes_keys:
                begun = min(done + clients, clients * self._repeat)  # each client may have had one under way
                left = f"what it made in up to {begun} operations is left on the server"
                self.warnings.append(f"{title}: broke off; {left}")
            raise
        self._maker.made += made
        self.measurements.append(measurement)

    def _tidy(self) -> None:
        if self._keep or not self._maker.made:
            return
        with _progress() as progress, suppress(KeyboardInterrupt):  # whoever says it now will not wait for this
            task = progress.add_task("destroying the keys made", total=len(self._maker.made))
            self._maker.destroy(lambda: progress.advance(task))
        failed = dict(self._maker.failed)
        if self._maker.made:
            failed["not tried any more"] = len(self._maker.made)
        self.warnings += [f"keys that could not be destroyed: {count} ({why})" for why, count in failed.items()]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "addresses": [str(address) for address in self._target.addresses],
            "kmip_version": "{}.{}".format(*self._maker.version),
            "discover": self._target.discover,
            "measurements": [one.as_json() for one in self.measurements],
            "warnings": self.warnings,
        }


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
