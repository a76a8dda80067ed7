"""Make the keys that Get and Wrap need before the clock runs, and destroy all keys that were made after it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from kmip_lab.speed.errors import OperationError
from kmip_lab.speed.operations import OPERATIONS, Keys
from kmip_lab.speed.session import ClientSession, Dialer
from kmip_lab.speed.target import Target
from kmip_lab.tools.requests import DECRYPT, ENCRYPT, UNWRAP_KEY, WRAP_KEY, activate, create_key, destroy, revoke

_MOST_FAILURES: Final = 3  # in a row; each may take as long as the target's timeout


class MeasuredKeys:
    """The keys of a measurement: ``made`` holds their unique identifiers until they are destroyed.

    ``failed`` counts, by reason, the keys that could not be destroyed.
    """

    def __init__(self, target: Target) -> None:
        self.made: list[str] = []
        self.failed: Counter[str] = Counter()
        self._dialer = Dialer(target)

    def prepare(self, names: Iterable[str]) -> Keys:
        """Make the keys that these operations need. Raises OperationError; keys made until then are in ``made``.

        A session is opened in any case, so that a server that can't be measured is noticed at once.
        """
        session = self._dialer.open()
        try:
            needed = [OPERATIONS[name] for name in names]
            key = self._create(session) if any(operation.needs_key for operation in needed) else ""
            wrapping_key = ""
            if any(operation.needs_wrapping_key for operation in needed):
                wrapping_key = self._create(session, usage=WRAP_KEY | UNWRAP_KEY)
                session.ask(activate(wrapping_key, self._dialer.version))
            return Keys(key, wrapping_key)
        finally:
            self._dialer.close(session)

    @property
    def version(self) -> tuple[int, int]:
        """The protocol version that the last session agreed on."""
        return self._dialer.version

    def _create(self, session: ClientSession, *, usage: int = ENCRYPT | DECRYPT) -> str:
        answer = session.ask(create_key(self._dialer.version, usage=usage))
        if not answer.unique_identifiers:
            raise OperationError("unreadable answer", "the answer to Create names no key")
        uid = answer.unique_identifiers[0].decode()
        self.made.append(uid)
        return uid

    def destroy(self, progress: Callable[[], None] = lambda: None) -> None:
        """Destroy the keys in ``made`` and remove them from it; ``progress`` is called for each.

        After three failures in a row that were no refusals the server counts as gone; ``made`` then holds the keys
        that were not tried.
        """
        session: ClientSession | None = None
        unanswered = 0
        while self.made and unanswered < _MOST_FAILURES:
            try:
                session = session or self._dialer.open()
                self._destroy(session, self.made[-1])
                unanswered = 0
            except OperationError as error:
                self.failed[error.kind] += 1
                unanswered = 0 if error.refused else unanswered + 1
                if session is not None and not error.refused:
                    session.close()
                    session = None
            self.made.pop()
            progress()
        if session is not None:
            session.close()

    def _destroy(self, session: ClientSession, uid: str) -> None:
        """Destroy a key; revoke it before if the server refuses that, as it does for an active key."""
        version = self._dialer.version
        try:
            session.ask(destroy(uid, version))
        except OperationError as error:
            if not error.refused:
                raise
            session.ask(revoke(uid, version))
            session.ask(destroy(uid, version))
