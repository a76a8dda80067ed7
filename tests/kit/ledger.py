"""Ledger of a chaos run: compares the answers that clients got with the operations that key managers executed.

Every Create carries the name of its request, which is stored with the key that it makes. So the ledger knows for each
key which request made it, and for each request which keys it made.

Both sides are complete, with one exception: a key manager that is killed after it commits an operation and before it
writes the operation to its journal leaves an executed operation without a journal entry. The opposite error can't
happen: the entry is written before the answer, and SIGKILL does not take back bytes that the kernel has. So journals
may lack executions, at most one for each kill, but never have one that did not happen, and never lack one that was
answered. The store has also the executions that a journal lacks, because a commit survives SIGKILL: the store says
which operations were executed, and the journals how often.
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


class RequestKind(Enum):
    """Create or Get, and which key it is about."""

    CREATE = "Create"
    GET = "Get"
    FOREIGN_GET = "Get of another's key"
    POISON = "Get that breaks its session"  # at every key manager


class Outcome(Enum):
    """The result of a request, as its client saw it."""

    SUCCESS = "success"
    UNKNOWN = "unknown"  # an error that says that the operation may have been executed
    NOT_FOUND = "not found"
    NOT_MASTER = "not master"  # a standby's own answer, passed on
    ERROR = "error"
    CLOSED = "closed"  # without an answer
    SILENT = "silent"  # no answer in time


class Exchange(NamedTuple):
    """One request, as its client saw it.

    ``began`` is in Unix seconds; ``request`` is a Create's name; ``message`` says what went wrong.
    """

    began: float
    seconds: float
    identity: str
    kind: RequestKind
    outcome: Outcome
    uid: str = ""
    request: str = ""
    message: str = ""


class Stored(NamedTuple):
    """The owner of a key that was made, and the name of the request that made it."""

    owner: str
    request: str


class Standby(NamedTuple):
    """A period, in Unix seconds, in which a key manager was not master."""

    name: str
    began: float
    ended: float


@dataclass
class Disturbance:
    """A period, in Unix seconds, in which the scheduler disturbed a key manager.

    Until ``grace`` seconds after its end, exchanges that began before may fail. A key manager that ``is_slow`` answers
    everything, and must not be ejected. If ``credential`` is set, the key manager refuses only this credential.
    """

    name: str
    event: str
    began: float
    ended: float = math.inf
    grace: float = 0.0
    is_slow: bool = False
    credential: str = ""


class Exclusion(NamedTuple):
    """The gateway excluded a key manager from its choice, at a moment between two Unix times.

    ``state`` is "down" or "ejected". ``credential`` is "" if the exclusion holds for all credentials.
    """

    name: str
    after: float
    before: float
    state: str
    credential: str = ""


class Condition(Enum):
    """The condition of a key manager when the gateway excluded it."""

    DISTURBED = "disturbed"  # or disturbed until less than ``grace`` seconds before the exclusion
    SLOW = "slow"
    HEALTHY = "healthy"


@dataclass
class Ledger:
    """All records of a run. ``stored`` has every key by its unique identifier."""

    exchanges: list[Exchange] = field(default_factory=list)
    anomalies: list[str] = field(default_factory=list)  # observations of clients that are mistakes by themselves
    entries: list[Entry] = field(default_factory=list)  # of all journals
    stored: dict[str, Stored] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    standbys: list[Standby] = field(default_factory=list)
    detection_time: float = 0.0  # s after which the gateway should know of a standby
    began: float = 0.0  # when the run began, in Unix seconds
    ended: float = 0.0
    disturbances: list[Disturbance] = field(default_factory=list)
    exclusions: list[Exclusion] = field(default_factory=list)

    def of(self, kind: RequestKind) -> list[Exchange]:
        """Return the requests of a kind, in the order in which they ended."""
        return [one for one in self.exchanges if one.kind is kind]

    @property
    def failed_reads(self) -> list[Exchange]:
        """Reads that failed although a key manager that could answer them was up."""
        return [one for one in self.exchanges if one.kind in _READS and one.outcome not in _EXPECTED[one.kind]]

    def log(self) -> str:
        """Return a line for each disturbance, with its times in seconds since the beginning of the run."""
        return "\n".join(
            f"{one.began - self.began:7.2f} {one.ended - self.began:7.2f}  {one.name:<12} {one.event} {one.credential}"
            for one in self.disturbances
        )

    def condition(self, exclusion: Exclusion) -> Condition:
        """Return the condition of the key manager at the time of an exclusion."""
        near = [
            one
            for one in self.disturbances
            if one.name == exclusion.name and one.began <= exclusion.before and exclusion.after <= one.ended + one.grace
        ]
        if any(not one.is_slow and one.credential in ("", exclusion.credential) for one in near):
            return Condition.DISTURBED
        return Condition.SLOW if any(one.is_slow for one in near) else Condition.HEALTHY

    def mistakes(self) -> list[str]:
        """Return a line for each contradiction and each forbidden event; at most a few of each sort."""
        return [line for check in _CHECKS for line in _few(list(check(self)))]

    def summary(self) -> str:
        """Return the table of counts, shares and times of the run."""
        return "\n".join(f"{name:<44}{value:>12}" for name, value in _rows(self))

    @property
    def journaled(self) -> Counter[str]:
        """How often each key was made, according to the journals."""
        creates = (entry for entry in self.entries if entry.operation == "Create" and entry.result == SUCCESS)
        return Counter(uid for entry in creates for uid in entry.uids)

    @property
    def unreported(self) -> set[str]:
        """Keys that were made, and whose unique identifier no client got."""
        return self.stored.keys() - {one.uid for one in self.of(RequestKind.CREATE)}


def outcome_of(response: Response) -> tuple[Outcome, str]:
    """Return the outcome of a response with one item, and the Result Message."""
    (item,) = response.items
    message = item.message or ""
    if item.status == ResultStatus.SUCCESS:
        return Outcome.SUCCESS, ""
    for outcome, part in _MESSAGE_PARTS.items():
        if part in message:
            return outcome, message
    found = item.reason not in (ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND)
    return (Outcome.ERROR if found else Outcome.NOT_FOUND), message


_MESSAGE_PARTS: Final = {Outcome.UNKNOWN: "unknown", Outcome.NOT_MASTER: "not master"}

#: Outcomes that are allowed while a healthy key manager is up.
_EXPECTED: Final = {
    RequestKind.CREATE: {Outcome.SUCCESS, Outcome.UNKNOWN, Outcome.ERROR, Outcome.NOT_MASTER},
    RequestKind.GET: {Outcome.SUCCESS, Outcome.NOT_MASTER},
    RequestKind.FOREIGN_GET: {Outcome.NOT_FOUND, Outcome.NOT_MASTER},
    RequestKind.POISON: {Outcome.UNKNOWN, Outcome.ERROR, Outcome.NOT_MASTER},
}
_READS: Final = (RequestKind.GET, RequestKind.FOREIGN_GET)


# The checks -----------------------------------------------------------------------------------------------------------


def _answers(ledger: Ledger) -> Iterator[str]:
    for one in ledger.exchanges:
        if one.outcome not in _EXPECTED[one.kind]:
            when = f"at {one.began - ledger.began:.2f}"
            what = f"{one.kind.value} of {one.identity}, {one.seconds:.2f} s"
            yield f"{what}: {one.outcome.value}: {one.message} ({when})"


def _anomalies(ledger: Ledger) -> Iterator[str]:
    yield from ledger.anomalies


def _executed_as_reported(ledger: Ledger) -> Iterator[str]:
    """Check that a Create made one key if it succeeded, at most one if its outcome is unknown, and else none."""
    made = defaultdict(list)
    for uid, stored in ledger.stored.items():
        made[stored].append(uid)
    for one in ledger.of(RequestKind.CREATE):
        uids = made.pop(Stored(one.identity, one.request), [])
        if one.outcome is Outcome.SUCCESS and uids != [one.uid]:
            yield f"{one.request} reported {one.uid}, and made {uids}"
        elif one.outcome is Outcome.UNKNOWN and len(uids) > 1:
            yield f"{one.request} is unknown, and made {uids}"
        elif one.outcome not in (Outcome.SUCCESS, Outcome.UNKNOWN) and uids:
            yield f"{one.request} reported {one.outcome.value}, and made {uids}"
    for stored, uids in made.items():
        yield f"no request for {uids}: {stored}"


def _unreported_were_unknown(ledger: Ledger) -> Iterator[str]:
    unknown = sum(one.outcome is Outcome.UNKNOWN for one in ledger.of(RequestKind.CREATE))
    if len(ledger.unreported) > unknown:
        yield f"{len(ledger.unreported)} keys were made by Creates without success; {unknown} Creates were unknown"


def _journals_and_store_agree(ledger: Ledger) -> Iterator[str]:
    journaled = ledger.journaled
    for uid, times in journaled.items():
        if times != 1 or uid not in ledger.stored:
            yield f"{uid} was executed {times} times by the journals, {int(uid in ledger.stored)} by the store"
    lost = ledger.stored.keys() - journaled.keys()
    if reported := lost - ledger.unreported:
        yield f"{len(reported)} keys were reported and are in no journal"
    if len(lost) > ledger.kills:
        yield f"{len(lost)} keys are in no journal, after {ledger.kills} kills"


def _standbys_are_noticed(ledger: Ledger) -> Iterator[str]:
    for one in ledger.exchanges:
        if one.outcome is Outcome.NOT_MASTER and not any(
            standby.began <= one.began + one.seconds and one.began <= standby.began + ledger.detection_time
            for standby in ledger.standbys
        ):
            when = f"at {one.began:.2f}, after {ledger.detection_time:g} s"
            yield f"{one.kind.value} of {one.identity} met a standby {when}"


def _no_backend_that_answers_is_ejected(ledger: Ledger) -> Iterator[str]:
    for exclusion in ledger.exclusions:
        condition = ledger.condition(exclusion)
        if condition is not Condition.DISTURBED:
            scope = f"for {exclusion.credential}" if exclusion.credential else "for all"
            when = f"at {exclusion.after - ledger.began:.2f}"
            state = f"{exclusion.state} {scope} ({when})"
            yield f"{exclusion.name} was {condition.value}, and the gateway set it to {state}"


_CHECKS: Final[tuple[Callable[[Ledger], Iterable[str]], ...]] = (
    _executed_as_reported,
    _unreported_were_unknown,
    _journals_and_store_agree,
    _anomalies,
    _standbys_are_noticed,
    _no_backend_that_answers_is_ejected,
    _answers,
)


def _few(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _FEW else [*lines[:_FEW], f"... and {len(lines) - _FEW} more of this sort"]


# The summary ----------------------------------------------------------------------------------------------------------


def _rows(ledger: Ledger) -> Iterator[tuple[str, str]]:
    for kind in RequestKind:
        exchanges = ledger.of(kind)
        name = kind.value
        yield f"{name}: requests", str(len(exchanges))
        for outcome, count in Counter(one.outcome for one in exchanges).most_common():
            yield f"{name}: {outcome.value}", str(count)
    yield "Create: executed, according to the journals", str(ledger.journaled.total())
    yield "Create: executed, according to the store", str(len(ledger.stored))
    yield "Create: executed, but not reported", str(len(ledger.unreported))
    for event, count in sorted(ledger.events.items()):
        yield f"event: {event}", str(count)
    yield "failed reads", str(len(ledger.failed_reads))
    for condition, share in _shares(ledger).items():
        yield f"time of key managers: {condition.value}", f"{share:.0%}"
    conditions = Counter((exclusion.state, ledger.condition(exclusion)) for exclusion in ledger.exclusions)
    for state in ("ejected", "down"):
        for condition in Condition:
            yield f"{state}, of {condition.value} key managers", str(conditions[state, condition])
    for kind in (RequestKind.GET, RequestKind.CREATE):
        seconds = sorted(one.seconds for one in ledger.of(kind))
        for name, part in (("median", 0.5), ("p99", 0.99), ("slowest", 1.0)):
            yield f"{kind.value}: {name}", f"{_quantile(seconds, part):.3f} s"


def _shares(ledger: Ledger) -> dict[Condition, float]:
    """Return the share of all key managers' time in each condition; exclusions are mistakes outside of DISTURBED."""
    names = {one.name for one in ledger.disturbances} | {entry.server for entry in ledger.entries}
    moments = range(int(ledger.began), int(ledger.ended))
    found = Counter(ledger.condition(Exclusion(name, moment, moment, "")) for name in names for moment in moments)
    return {condition: found[condition] / max(found.total(), 1) for condition in Condition}


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)] if ordered else 0.0
