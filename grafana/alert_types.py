"""An alert as the tables have it: a value, a comparison and further conditions; and the words for the operator."""

from typing import Final, Literal, NamedTuple

BY: Final = "job, instance"

Severity = Literal["critical", "warning", "info"]


class Alert(NamedTuple):
    """An alert: it fires if ``value`` ``test`` has been true for ``hold``, and the ``conditions`` with it.

    ``summary`` is a template of Prometheus, for the first line of a message; ``meaning`` says what has happened to
    whom, ``remedy`` what to do.
    """

    name: str
    severity: Severity
    hold: str
    value: str
    test: str
    summary: str
    meaning: str
    remedy: str
    conditions: tuple[str, ...] = ()

    @property
    def expression(self) -> str:
        """The whole expression."""
        return "\n".join([f"{self.value} {self.test}", *self.conditions])


class Record(NamedTuple):
    """A recording rule: a series that several expressions use."""

    name: str
    expression: str
    meaning: str


class Group(NamedTuple):
    """Alerts about the same thing."""

    title: str
    alerts: list[Alert]
