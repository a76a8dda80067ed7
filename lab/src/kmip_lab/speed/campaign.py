"""Several measurements one after the other, with the keys that they need, and a progress bar."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.progress import Progress

from kmip_lab.speed.client_process import ClientPlan
from kmip_lab.speed.measured_keys import MeasuredKeys
from kmip_lab.speed.operations import OPERATIONS, Keys
from kmip_lab.speed.processes import measure
from kmip_lab.speed.result import Measurement
from kmip_lab.speed.target import Target
from kmip_lab.tools.progress import progress_bar


class Campaign:
    """Several measurements of one target, with the keys for them.

    ``measurements`` are the finished measurements. ``warnings`` holds a line for each problem with keys.
    """

    def __init__(self, target: Target, sessions: str, repeat: int, *, keep: bool) -> None:
        self.measurements: list[Measurement] = []
        self.warnings: list[str] = []
        self._target = target
        self._sessions = sessions
        self._repeat = repeat
        self._keep = keep
        self._keys = MeasuredKeys(target)

    def all(self, names: Sequence[str], clients: Sequence[int]) -> None:
        """Measure each operation with each number of clients, and destroy the keys that were made.

        Raises OperationError, ClientDiedError and KeyboardInterrupt; finished measurements are kept.
        """
        try:
            keys = self._keys.prepare(names)
            with progress_bar() as progress:
                for name in names:
                    for count in clients:
                        self._one(name, count, keys, progress)
        finally:
            self._destroy_keys()

    def _one(self, name: str, clients: int, keys: Keys, progress: Progress) -> None:
        title = f"{name}, {clients} {'client' if clients == 1 else 'clients'}"
        task = progress.add_task(title, total=clients * self._repeat)
        plan = ClientPlan(self._target, name, self._repeat, self._sessions, keys)
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done = count
            progress.update(task, completed=count)

        try:
            measurement, made = measure(plan, clients, on_progress)
        except BaseException:
            if OPERATIONS[name].makes_keys:
                begun = min(done + clients, clients * self._repeat)  # each client may have had an operation under way
                left = f"the keys of up to {begun} operations are left on the server"
                self.warnings.append(f"{title}: broke off; {left}")
            raise
        self._keys.made += made
        self.measurements.append(measurement)

    def _destroy_keys(self) -> None:
        if self._keep or not self._keys.made:
            return
        with progress_bar() as progress, suppress(KeyboardInterrupt):  # a second Ctrl-C ends this, too
            task = progress.add_task("destroying the keys made", total=len(self._keys.made))
            self._keys.destroy(lambda: progress.advance(task))
        failed = dict(self._keys.failed)
        if self._keys.made:
            failed["not tried any more"] = len(self._keys.made)
        self.warnings += [f"keys that could not be destroyed: {count} ({why})" for why, count in failed.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return {
            "addresses": [str(address) for address in self._target.addresses],
            "kmip_version": "{}.{}".format(*self._keys.version),
            "discover": self._target.discover,
            "measurements": [measurement.as_json() for measurement in self.measurements],
            "warnings": self.warnings,
        }
