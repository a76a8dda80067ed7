"""The books of a chaos run: what clients were told on one side, what key managers did on the other, and the balance.

Every Create carries the name of its request, which stays with the key that it makes: so the books know of each key who
asked for it, and of each request which keys it made.

Both sides are complete but for one thing: a key manager that is killed between committing an operation and noting it
in its journal has done what its journal does not know. The other way round there is no error: what was answered was
noted before, in the kernel's hands, from which SIGKILL takes nothing. So a journal may hide executions, one for each
kill, but never makes one up, and never lacks one that was answered. What it hides the store has, where a commit
survives SIGKILL as well: the store says what was executed, and the journals how often.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from kmip_lab.keymanager.journal import SUCCESS, Entry

from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultReason, ResultStatus

_FEW: Final = 12  # lines about mistakes of one sort


class Kind(Enum):
    """What is asked for."""

    CREATE = "Create"
    GET = "Get"
    FOREIGN_GET = "Get of another's key"
    POISON = "Get that breaks its session"  # at every key manager


class Outcome(Enum):
    """What a client was told."""

    SUCCESS = "success"
    UNKNOWN = "unknown"  # an error that says so: it may have been executed
    NOT_FOUND = "not found"
    NOT_MASTER = "not master"  # a standby's own answer, passed on
    ERROR = "error"
    CLOSED = "closed"  # without an answer
    SILENT = "silent"  # no answer in time


class Asked(NamedTuple):
    """One request, as its client saw it.

    ``began`` is in Unix seconds; ``request`` is a Create's name; ``words`` are those of what went wrong.
    """

    began: float
    seconds: float
    identity: str
    kind: Kind
    outcome: Outcome
    uid: str = ""
    request: str = ""
    words: str = ""


class Stored(NamedTuple):
    """A key that was made: for whom, and on which request."""

    owner: str
    request: str


class Standby(NamedTuple):
    """A time, in Unix seconds, in which a key manager was not master."""

    name: str
    began: float
    ended: float


@dataclass
class Disturbance:
    """A time, in Unix seconds, in which the conductor disturbed a key manager.

    Until ``grace`` seconds after its end, exchanges that began before may fail. A key manager that ``is_slow`` answers
    everything: it must not be ejected. With a ``credential``, only this one is refused, and all others are served.
    """

    name: str
    event: str
    began: float
    ended: float = math.inf
    grace: float = 0.0
    is_slow: bool = False
    credential: str = ""


class Turn(NamedTuple):
    """The gateway turned away from a key manager, between two Unix times.

    ``credential`` is the one whose requests it turned away; "" if the key manager was taken for ``down`` or ``ejected``
    altogether.
    """

    name: str
    after: float
    before: float
    state: str
    credential: str = ""


class Condition(Enum):
    """The condition of a key manager when the gateway turned away from it."""

    DISTURBED = "disturbed"  # or disturbed until less than ``grace`` seconds before
    SLOW = "slow"
    HEALTHY = "healthy"


@dataclass
class Books:
    """Everything that was written down. ``stored`` has every key by its unique identifier."""

    asked: list[Asked] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)  # what a client saw that can't be
    entries: list[Entry] = field(default_factory=list)  # of all journals
    stored: dict[str, Stored] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    standbys: list[Standby] = field(default_factory=list)
    notice: float = 0.0  # s after which the gateway should know of a standby
    began: float = 0.0  # when the run began, in Unix seconds
    ended: float = 0.0
    disturbances: list[Disturbance] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def of(self, kind: Kind) -> list[Asked]:
        """The requests of this kind."""
        return [one for one in self.asked if one.kind is kind]

    @property
    def failed_reads(self) -> list[Asked]:
        """The reads that failed, although a key manager that could answer them was up."""
        return [one for one in self.asked if one.kind in _READS and one.outcome not in _EXPECTED[one.kind]]

    def log(self) -> str:
        """Return a line for each disturbance, with its times in seconds since the beginning of the run."""
        return "\n".join(
            f"{one.began - self.began:7.2f} {one.ended - self.began:7.2f}  {one.name:<12} {one.event} {one.credential}"
            for one in self.disturbances
        )

    def condition(self, turn: Turn) -> Condition:
        """Return the condition of the key manager at the time of a turn."""
        near = [
            one
            for one in self.disturbances
            if one.name == turn.name and one.began <= turn.before and turn.after <= one.ended + one.grace
        ]
        if any(not one.is_slow and one.credential in ("", turn.credential) for one in near):
            return Condition.DISTURBED
        return Condition.SLOW if any(one.is_slow for one in near) else Condition.HEALTHY

    def mistakes(self) -> list[str]:
        """What does not balance, or was not to happen; a line each, and of one sort no more than a few."""
        return [line for check in _CHECKS for line in _few(list(check(self)))]

    def sheet(self) -> str:
        """The balance sheet."""
        return "\n".join(f"{name:<44}{value:>12}" for name, value in _rows(self))

    @property
    def noted(self) -> Counter[str]:
        """How often, by the journals, each key was made."""
        creates = (entry for entry in self.entries if entry.operation == "Create" and entry.result == SUCCESS)
        return Counter(uid for entry in creates for uid in entry.uids)

    @property
    def unreported(self) -> set[str]:
        """The keys that were made, and of which no client was told."""
        return self.stored.keys() - {one.uid for one in self.of(Kind.CREATE)}


def outcome_of(response: Response) -> tuple[Outcome, str]:
    """What the answer to one operation says, and its words."""
    (item,) = response.items
    words = item.message or ""
    if item.status == ResultStatus.SUCCESS:
        return Outcome.SUCCESS, ""
    for outcome, part in _WORDS.items():
        if part in words:
            return outcome, words
    found = item.reason not in (ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)
    return (Outcome.ERROR if found else Outcome.NOT_FOUND), words


_WORDS: Final = {Outcome.UNKNOWN: "unknown", Outcome.NOT_MASTER: "not master"}

#: What a client may be told while a healthy key manager is there.
_EXPECTED: Final = {
    Kind.CREATE: {Outcome.SUCCESS, Outcome.UNKNOWN, Outcome.ERROR, Outcome.NOT_MASTER},
    Kind.GET: {Outcome.SUCCESS, Outcome.NOT_MASTER},
    Kind.FOREIGN_GET: {Outcome.NOT_FOUND, Outcome.NOT_MASTER},
    Kind.POISON: {Outcome.UNKNOWN, Outcome.ERROR, Outcome.NOT_MASTER},
}
_READS: Final = (Kind.GET, Kind.FOREIGN_GET)


# The checks -----------------------------------------------------------------------------------------------------------


def _answers(books: Books) -> Iterator[str]:
    for one in books.asked:
        if one.outcome not in _EXPECTED[one.kind]:
            when = f"at {one.began - books.began:.2f}"
            yield f"{one.kind.value} of {one.identity}, {one.seconds:.2f} s: {one.outcome.value}: {one.words} ({when})"


def _oddities(books: Books) -> Iterator[str]:
    yield from books.oddities


def _executed_as_reported(books: Books) -> Iterator[str]:
    """A Create made one key where it reported success, one at the most where the outcome is unknown, and else none."""
    made = defaultdict(list)
    for uid, stored in books.stored.items():
        made[stored].append(uid)
    for one in books.of(Kind.CREATE):
        uids = made.pop(Stored(one.identity, one.request), [])
        if one.outcome is Outcome.SUCCESS and uids != [one.uid]:
            yield f"{one.request} reported {one.uid}, and made {uids}"
        elif one.outcome is Outcome.UNKNOWN and len(uids) > 1:
            yield f"{one.request} is unknown, and made {uids}"
        elif one.outcome not in (Outcome.SUCCESS, Outcome.UNKNOWN) and uids:
            yield f"{one.request} reported {one.outcome.value}, and made {uids}"
    for stored, uids in made.items():
        yield f"nobody asked for {uids}: {stored}"


def _unreported_were_unknown(books: Books) -> Iterator[str]:
    unknown = sum(one.outcome is Outcome.UNKNOWN for one in books.of(Kind.CREATE))
    if len(books.unreported) > unknown:
        yield f"{len(books.unreported)} Creates were executed and reported to nobody; {unknown} were called unknown"


def _journals_and_store_agree(books: Books) -> Iterator[str]:
    noted = books.noted
    for uid, times in noted.items():
        if times != 1 or uid not in books.stored:
            yield f"{uid} was executed {times} times by the journals, {int(uid in books.stored)} by the store"
    lost = books.stored.keys() - noted.keys()
    if reported := lost - books.unreported:
        yield f"{len(reported)} keys were reported and are in no journal"
    if len(lost) > books.kills:
        yield f"{len(lost)} keys are in no journal, after {books.kills} kills"


def _standbys_are_noticed(books: Books) -> Iterator[str]:
    for one in books.asked:
        if one.outcome is Outcome.NOT_MASTER and not any(
            standby.began <= one.began + one.seconds and one.began <= standby.began + books.notice
            for standby in books.standbys
        ):
            yield f"{one.kind.value} of {one.identity} met a standby at {one.began:.2f}, after {books.notice:g} s"


def _no_backend_that_answers_is_ejected(books: Books) -> Iterator[str]:
    for turn in books.turns:
        condition = books.condition(turn)
        if condition is not Condition.DISTURBED:
            whom = f"for {turn.credential}" if turn.credential else "for all"
            when = f"at {turn.after - books.began:.2f}"
            yield f"{turn.name} was {condition.value}, and was taken for {turn.state} {whom} ({when})"


_CHECKS: Final[tuple[Callable[[Books], Iterable[str]], ...]] = (
    _executed_as_reported,
    _unreported_were_unknown,
    _journals_and_store_agree,
    _oddities,
    _standbys_are_noticed,
    _no_backend_that_answers_is_ejected,
    _answers,
)


def _few(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _FEW else [*lines[:_FEW], f"... and {len(lines) - _FEW} more of this sort"]


# The sheet ------------------------------------------------------------------------------------------------------------


def _rows(books: Books) -> Iterator[tuple[str, str]]:
    for kind in Kind:
        asked = books.of(kind)
        name = kind.value
        yield f"{name}: requests", str(len(asked))
        for outcome, count in Counter(one.outcome for one in asked).most_common():
            yield f"{name}: {outcome.value}", str(count)
    yield "Create: executed, by the journals", str(books.noted.total())
    yield "Create: executed, by the store", str(len(books.stored))
    yield "Create: executed and reported to nobody", str(len(books.unreported))
    for event, count in sorted(books.events.items()):
        yield f"event: {event}", str(count)
    yield "failed reads", str(len(books.failed_reads))
    for condition, share in _shares(books).items():
        yield f"time of key managers: {condition.value}", f"{share:.0%}"
    conditions = Counter((turn.state, books.condition(turn)) for turn in books.turns)
    for state in ("ejected", "down"):
        for condition in Condition:
            yield f"{state}, of {condition.value} key managers", str(conditions[state, condition])
    for kind in (Kind.GET, Kind.CREATE):
        seconds = sorted(one.seconds for one in books.of(kind))
        for name, part in (("median", 0.5), ("p99", 0.99), ("slowest", 1.0)):
            yield f"{kind.value}: {name}", f"{_quantile(seconds, part):.3f} s"


def _shares(books: Books) -> dict[Condition, float]:
    """Return the share of all key managers' time for each condition: a turn is a mistake only outside of DISTURBED."""
    names = {one.name for one in books.disturbances} | {entry.server for entry in books.entries}
    moments = range(int(books.began), int(books.ended))
    found = Counter(books.condition(Turn(name, moment, moment, "")) for name in names for moment in moments)
    return {condition: found[condition] / max(found.total(), 1) for condition in Condition}


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)] if ordered else 0.0
