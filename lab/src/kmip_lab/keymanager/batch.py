"""One request, executed item by item, and its answer (1.4 sections 4, 6 and 7). No TLS, no waiting."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.binding import credentials
from gateway.kmip.compose import Result
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import FALLBACK_VERSION, Request, RequestItem, operation_name, reason_name
from gateway.kmip.spec import (
    AsynchronousIndicator,
    BatchErrorContinuationOption,
    ItemType,
    ResultReason,
    ResultStatus,
    Tag,
)
from kmip_lab.keymanager.call import Call, Done, Placeholders
from kmip_lab.keymanager.costs import cost_names
from kmip_lab.keymanager.deferred import Deferred
from kmip_lab.keymanager.greeting import VERSIONS
from kmip_lab.keymanager.journal import SUCCESS, Journal
from kmip_lab.keymanager.keys import MakeKeyPair, new_key_pair
from kmip_lab.keymanager.local import Local
from kmip_lab.keymanager.operations import DUTIES, Duty, Standing
from kmip_lab.keymanager.refusals import Refusal
from kmip_lab.keymanager.store import Store
from kmip_lab.keymanager.tree import Node

_EMPTY: Final = ttlv.Item(Tag.REQUEST_PAYLOAD, ItemType.STRUCTURE, 0, 0)


class Engine:
    """Executes requests on a store, in the name of one key manager, and notes them in a journal.

    ``make_key_pair`` makes the pairs of Create Key Pair; ``in_step`` tells the replicas that have all that is here.
    ``defer``, where there is one, is given the operations that are to be executed later, each as a batch of its own.
    """

    def __init__(
        self, name: str, store: Store, journal: Journal | None = None, make_key_pair: MakeKeyPair = new_key_pair
    ) -> None:
        self.name = name
        self.store = store
        self.journal = journal
        self.make_key_pair = make_key_pair
        self.in_step: Callable[[], tuple[str, ...]] = tuple
        self.local = Local()
        self.defer: Callable[[Deferred, Batch], None] | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.name} on {self.store!r}>"

    def begin(self, frame: bytes, owner: str) -> "Batch":
        """Read a request that the client ``owner`` sent; nothing is executed yet. Never raises for what a client sends.

        Everything is read before anything is executed: a request that can't be read is not executed in part.
        """
        try:
            request = decode_request(frame)
            left = [(item, _grow(item)) for item in request.items]
        except ProtocolError as error:
            return Batch(self, owner, answer=_unreadable(error), undecodable=True)
        refusal = _refuse_whole(request, may_defer=self.defer is not None) or self._refuse_tickets(request, owner)
        if refusal is not None:
            return Batch(self, owner, answer=refusal)
        return Batch(self, owner, request, left)

    def _refuse_tickets(self, request: Request, owner: str) -> bytes | None:
        """The answer to a request that shows a ticket which is not valid here; None for all others."""
        try:
            for ticket in (request.frame[bound.start : bound.end] for bound in credentials(request)):
                self.local.tickets.find(ticket, owner)
        except Refusal as refusal:
            return compose.failure(request, refusal.reason_in(request.version), str(refusal))
        return None

    def handle(self, frame: bytes, owner: str) -> bytes:
        """Execute a whole request at once and return the answer."""
        batch = self.begin(frame, owner)
        while batch.pending is not None:
            batch.execute()
        return batch.answer()


def _grow(item: RequestItem) -> Node:
    span = item.fields.get(Tag.REQUEST_PAYLOAD)
    return Node.grow(item.frame, _EMPTY if span is None else _EMPTY._replace(start=span[0], end=span[1]))


def _unreadable(error: ProtocolError) -> bytes:
    version = error.version if error.version in VERSIONS else None
    return compose.failure(None, ResultReason.INVALID_MESSAGE, str(error), version=version or FALLBACK_VERSION)


def _refuse_whole(request: Request, *, may_defer: bool) -> bytes | None:
    """The answer to a request that can be read, and of which nothing is executed; None for all others."""
    if request.version not in VERSIONS:
        message = "protocol version {}.{} is not spoken here".format(*request.version)
        return compose.failure(None, ResultReason.INVALID_MESSAGE, message)
    if request.batch_error_continuation_option == BatchErrorContinuationOption.UNDO:
        return compose.failure(request, ResultReason.FEATURE_NOT_SUPPORTED, "batches can't be undone here")
    if request.asynchronous_indicator == AsynchronousIndicator.MANDATORY and not may_defer:
        return compose.failure(request, ResultReason.FEATURE_NOT_SUPPORTED, "everything is answered at once here")
    return None


def _is_asynchronous(request: Request) -> bool:
    """Whether a request is to be deferred: where it must be. In 1.x, it can only say that it may be."""
    indicator = request.asynchronous_indicator
    if indicator == AsynchronousIndicator.OPTIONAL:
        return request.version < (2, 0)
    return indicator == AsynchronousIndicator.MANDATORY


class Batch:
    """A request under way.

    ``execute`` the items one by one while there is a ``pending`` one, then send the ``answer``. Where ``undecodable``
    is set, what follows on this connection can't be trusted, and it is closed after the answer. Set ``standing`` before
    executing where the key manager is not master. ``wrote`` tells whether an operation that writes has succeeded.
    """

    def __init__(
        self,
        engine: Engine,
        owner: str,
        request: Request | None = None,
        left: Sequence[tuple[RequestItem, Node]] = (),
        *,
        answer: bytes | None = None,
        undecodable: bool = False,
    ) -> None:
        self.undecodable = undecodable
        self.standing = Standing.MASTER
        self.wrote = False
        self._engine = engine
        self._owner = owner
        self._request = request
        self._left = list(left)
        self._deferring = request is not None and engine.defer is not None and _is_asynchronous(request)
        self._placeholders = Placeholders()
        self._results: list[Result] = []
        self._answer = answer
        self._room = request.maximum_response_size if request is not None else None

    def __repr__(self) -> str:
        return f"<Batch of {self._owner}: {len(self._results)} executed, {len(self._left)} pending>"

    @property
    def operations(self) -> tuple[int, ...]:
        """All operations of the request; none where it could not be read."""
        return () if self._request is None else tuple(item.operation for item in self._request.items)

    @property
    def unique_identifiers(self) -> tuple[str, ...]:
        """The unique identifiers that stand in the payloads; none if the request could not be read."""
        items = () if self._request is None else self._request.items
        return tuple(uid for item in items for uid in _asked_uids(item))

    @property
    def pending(self) -> int | None:
        """The operation that ``execute`` would execute now; None when there is none left."""
        return self._left[0][0].operation if self._left else None

    @property
    def cost(self) -> tuple[tuple[str, ...], bool]:
        """The names of the pending item's cost, and whether it is charged as any operation is. Refusing is free."""
        item, payload = self._left[0]
        duty = DUTIES.get(item.operation)
        if duty is None or not self.standing.permits(duty) or self._defers(duty):
            return (), False
        return cost_names(item.operation, payload), duty.charged

    def execute(self) -> None:
        """Execute the pending item, and note it in the journal."""
        item, payload = self._left.pop(0)
        try:
            duty = self._duty(item.operation)
            if self._defers(duty):
                self._results.append(self._defer(item, payload))
                return
            done = self._perform(duty, payload)
        except Refusal as refusal:
            self._placeholders.note(item.operation, ())
            self._note(item, _asked_uids(item), reason_name(refusal.reason_in(self._version)))
            self._results.append(self._failed(item, refusal))
            if self._stops:
                self._left.clear()
        else:
            self._placeholders.note(item.operation, done.uids)
            self._note(item, list(done.uids), SUCCESS)
            result = done.result or Result(ResultStatus.SUCCESS, item.operation, payload=done.payload)
            self._results.append(result._replace(unique_batch_item_id=item.unique_batch_item_id))
        self._results[-1] = self._fit(item, self._results[-1])

    @property
    def results(self) -> list[Result]:
        """The results of what was executed so far."""
        return self._results

    def answer(self) -> bytes:
        """The response: a result for every item that was executed. Items behind a failure may have none."""
        return compose.encode_response(self._version, self._results) if self._answer is None else self._answer

    @property
    def _version(self) -> tuple[int, int]:
        return FALLBACK_VERSION if self._request is None else self._request.version

    @property
    def _stops(self) -> bool:
        option = None if self._request is None else self._request.batch_error_continuation_option
        return option != BatchErrorContinuationOption.CONTINUE

    def _defers(self, duty: Duty) -> bool:
        return self._deferring and duty.charged

    def _defer(self, item: RequestItem, payload: Node) -> Result:
        """Have an item executed later: by itself, whatever becomes of those before it."""
        engine = self._engine
        later = Batch(engine, self._owner, self._request, [(item, payload)])
        later._deferring, later._room = False, None
        later._placeholders = self._placeholders
        deferred = Deferred(item.operation)
        value = engine.local.deferred.add(self._owner, deferred)
        if engine.defer is not None:
            engine.defer(deferred, later)
        status, number = ResultStatus.OPERATION_PENDING, item.unique_batch_item_id
        return Result(status, item.operation, number, asynchronous_correlation_value=value)

    def _duty(self, operation: int) -> Duty:
        """What is needed to execute an operation. Raises Refusal where it isn't executed here and now."""
        duty = DUTIES.get(operation)
        if duty is None or self._version < duty.since:
            name = operation_name(operation)
            raise Refusal(ResultReason.OPERATION_NOT_SUPPORTED, f"operation {operation} ({name}) is not supported here")
        if not self.standing.permits(duty):
            raise Refusal(ResultReason.GENERAL_FAILURE, "this key manager is a standby, not master")
        return duty

    def _perform(self, duty: Duty, payload: Node) -> Done:
        store = self._engine.store
        call = Call(
            store=store,
            server=self._engine.name,
            owner=self._owner,
            version=self._version,
            payload=payload,
            placeholders=self._placeholders,
            now=int(time.time()),
            standby=self.standing is not Standing.MASTER,
            in_step=self._engine.in_step(),
            make_key_pair=self._engine.make_key_pair,
            local=self._engine.local,
        )
        try:
            with store.transaction() if duty.writes else nullcontext():
                done = duty.handler(call)
        except ProtocolError as error:
            raise Refusal(ResultReason.INVALID_MESSAGE, str(error)) from None
        except sqlite3.Error as error:
            raise Refusal(ResultReason.INTERNAL_SERVER_ERROR, f"the store failed: {error}") from error
        self.wrote = self.wrote or duty.writes
        return done

    def _failed(self, item: RequestItem, refusal: Refusal) -> Result:
        return Result(
            ResultStatus.OPERATION_FAILED,
            item.operation,
            item.unique_batch_item_id,
            reason=refusal.reason_in(self._version),
            message=str(refusal),
            payload=refusal.payload,
        )

    def _fit(self, item: RequestItem, result: Result) -> Result:
        """The result, or a failure in its place where the response would be over Maximum Response Size (1.4, 6.3).

        What was executed stays executed.
        """
        if self._room is None:
            return result
        if len(compose.encode_response(self._version, self._results)) <= self._room:
            return result
        message = f"the response would be over {self._room} bytes"
        return self._failed(item, Refusal(ResultReason.RESPONSE_TOO_LARGE, message))

    def _note(self, item: RequestItem, uids: list[str], result: str) -> None:
        engine = self._engine
        if engine.journal is not None:
            operation = operation_name(item.operation)
            engine.journal.write(server=engine.name, owner=self._owner, operation=operation, uids=uids, result=result)


def _asked_uids(item: RequestItem) -> list[str]:
    return [uid.rstrip(b"\0").decode(errors="replace") for uid in item.unique_identifiers]
