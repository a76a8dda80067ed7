"""The keys that Get and Wrap need, made before the clock runs; and what was made, taken away after it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from kmip_lab.speed import operations
from kmip_lab.speed.operations import OPERATIONS, Keys
from kmip_lab.speed.session import Dialler, Session
from kmip_lab.speed.target import Target
from kmip_lab.speed.trouble import TroubleError

_PATIENCE: Final = 3  # failures in a row, each of which may take as long as the target's timeout


class Maker:
    """Makes keys, and remembers what has been made: ``made`` holds unique identifiers.

    ``failed`` counts, by the reason, those that could not be destroyed.
    """

    def __init__(self, target: Target) -> None:
        self.made: list[str] = []
        self.failed: Counter[str] = Counter()
        self._dialler = Dialler(target)

    def prepare(self, names: Iterable[str]) -> Keys:
        """The keys that these operations need. Raises TroubleError; what was made until then is in ``made``.

        A session is opened in any case, so that a server that can't be measured is known at once.
        """
        session = self._dialler.open()
        try:
            needed = [OPERATIONS[name] for name in names]
            key = self._create(session) if any(one.needs_key for one in needed) else ""
            wrapping_key = ""
            if any(one.needs_wrapping_key for one in needed):
                wrapping_key = self._create(session, wraps=True)
                session.ask(operations.activate(self._dialler.version, wrapping_key))
            return Keys(key, wrapping_key)
        finally:
            self._dialler.close(session)

    @property
    def version(self) -> tuple[int, int]:
        """The protocol version that was agreed on."""
        return self._dialler.version

    def _create(self, session: Session, *, wraps: bool = False) -> str:
        answer = session.ask(operations.create(self._dialler.version, wraps=wraps))
        if not answer.unique_identifiers:
            raise TroubleError("unreadable answer", "the answer to Create names no key")
        uid = answer.unique_identifiers[0].decode()
        self.made.append(uid)
        return uid

    def destroy(self, progress: Callable[[], None] = lambda: None) -> None:
        """Destroy what was made, and forget it.

        After some failures in a row that were no refusals the server is taken for gone: ``made`` holds what was not
        tried.
        """
        session: Session | None = None
        unanswered = 0
        while self.made and unanswered < _PATIENCE:
            try:
                session = session or self._dialler.open()
                self._destroy(session, self.made[-1])
                unanswered = 0
            except TroubleError as trouble:
                self.failed[trouble.kind] += 1
                unanswered = 0 if trouble.refused else unanswered + 1
                if session is not None and not trouble.refused:
                    session.close()
                    session = None
            self.made.pop()
            progress()
        if session is not None:
            session.close()

    def _destroy(self, session: Session, uid: str) -> None:
        """Destroy a key, after revoking it where it is active."""
        version = self._dialler.version
        try:
            session.ask(operations.destroy(version, uid))
        except TroubleError as trouble:
            if not trouble.refused:
                raise
            session.ask(operations.revoke(version, uid))
            session.ask(operations.destroy(version, uid))
