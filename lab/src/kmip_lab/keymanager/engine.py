"""The engine: execute one request item by item and compose its response (1.4 sections 4, 6 and 7).

It neither waits nor uses TLS: the server spends the HSM's costs and replicates between the steps.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

from gateway.errors import ProtocolError
from gateway.kmip import compose, ttlv
from gateway.kmip.binding import credentials
from gateway.kmip.compose import Result
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import FALLBACK_VERSION, Request, RequestItem, Version, operation_name, reason_name
from gateway.kmip.spec import (
    AsynchronousIndicator,
    BatchErrorContinuationOption,
    ItemType,
    Operation,
    ResultReason,
    ResultStatus,
    Tag,
)
from kmip_lab.keymanager import attribute_operations, crypto_operations, object_operations, server_operations
from kmip_lab.keymanager.context import Handler, OperationContext, Placeholders, Success
from kmip_lab.keymanager.costs import cost_names
from kmip_lab.keymanager.crypto import MakeKeyPair, new_key_pair
from kmip_lab.keymanager.journal import SUCCESS, Journal
from kmip_lab.keymanager.protocol import Node, OperationFailed
from kmip_lab.keymanager.roles import Access
from kmip_lab.keymanager.server_operations import VERSIONS
from kmip_lab.keymanager.server_state import DeferredOperation, ServerState
from kmip_lab.keymanager.store import Store

_EMPTY: Final = ttlv.Item(Tag.REQUEST_PAYLOAD, ItemType.STRUCTURE, 0, 0)


class OperationRule(NamedTuple):
    """The handler of one operation, and how it is executed.

    ``writes``: within a transaction. ``charged``: the HSM's operation cost is spent, and the operation may be deferred.
    ``since``: the first version that has the operation. ``on_standby``: a standby executes it, too.
    """

    handler: Handler
    writes: bool = False
    charged: bool = True
    since: Version = (1, 0)
    on_standby: bool = False

    def is_permitted(self, access: Access) -> bool:
        """Return whether a key manager with this access executes the operation."""
        if access is Access.FULL or self.on_standby:
            return True
        return access is Access.READ_ONLY and not self.writes


def _query(context: OperationContext) -> Success:
    supported = (operation for operation, rule in OPERATIONS.items() if rule.since <= context.version)
    return server_operations.query(context, supported)


OPERATIONS: Final[dict[int, OperationRule]] = {
    Operation.CREATE: OperationRule(object_operations.create, writes=True),
    Operation.CREATE_KEY_PAIR: OperationRule(object_operations.create_key_pair, writes=True),
    Operation.REGISTER: OperationRule(object_operations.register, writes=True),
    Operation.LOCATE: OperationRule(attribute_operations.locate),
    Operation.CHECK: OperationRule(object_operations.check),
    Operation.GET: OperationRule(object_operations.get),
    Operation.GET_ATTRIBUTES: OperationRule(attribute_operations.get_attributes),
    Operation.GET_ATTRIBUTE_LIST: OperationRule(attribute_operations.get_attribute_list),
    Operation.ADD_ATTRIBUTE: OperationRule(attribute_operations.add_attribute, writes=True),
    Operation.MODIFY_ATTRIBUTE: OperationRule(attribute_operations.modify_attribute, writes=True),
    Operation.DELETE_ATTRIBUTE: OperationRule(attribute_operations.delete_attribute, writes=True),
    Operation.ACTIVATE: OperationRule(object_operations.activate, writes=True),
    Operation.REVOKE: OperationRule(object_operations.revoke, writes=True),
    Operation.DESTROY: OperationRule(object_operations.destroy, writes=True),
    Operation.QUERY: OperationRule(_query, charged=False, on_standby=True),
    Operation.DISCOVER_VERSIONS: OperationRule(
        server_operations.discover_versions, charged=False, since=(1, 1), on_standby=True
    ),
    Operation.ENCRYPT: OperationRule(crypto_operations.encrypt, since=(1, 2)),
    Operation.DECRYPT: OperationRule(crypto_operations.decrypt, since=(1, 2)),
    Operation.POLL: OperationRule(server_operations.poll, charged=False),
    Operation.CANCEL: OperationRule(server_operations.cancel, charged=False),
    Operation.SET_ATTRIBUTE: OperationRule(attribute_operations.set_attribute, writes=True, since=(2, 0)),
    Operation.LOGIN: OperationRule(server_operations.login, charged=False, since=(2, 0)),
    Operation.LOGOUT: OperationRule(server_operations.logout, charged=False, since=(2, 0)),
}


class Engine:
    """Executes requests on a store, in the name of one key manager, and records them in a journal.

    ``make_key_pair`` makes the pairs of Create Key Pair; ``in_step`` returns the names of the replicas that have all
    changes of this key manager. ``defer``, if set, is called with each operation that is to be executed later, and a
    batch of this operation alone.
    """

    def __init__(
        self, name: str, store: Store, journal: Journal | None = None, make_key_pair: MakeKeyPair = new_key_pair
    ) -> None:
        self.name = name
        self.store = store
        self.journal = journal
        self.make_key_pair = make_key_pair
        self.in_step: Callable[[], tuple[str, ...]] = tuple
        self.state = ServerState()
        self.defer: Callable[[DeferredOperation, Batch], None] | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.name} on {self.store!r}>"

    def begin(self, frame: bytes, owner: str) -> "Batch":
        """Decode a request of the client ``owner``, without executing it. Raises nothing, whatever the bytes are.

        All items are decoded before the first is executed, so that a request that can't be decoded is not executed in
        part.
        """
        try:
            request = decode_request(frame)
            items = [(item, _payload(item)) for item in request.items]
        except ProtocolError as error:
            return Batch(self, owner, answer=_undecodable(error), undecodable=True)
        failure = _check_request(request, may_defer=self.defer is not None) or self._check_tickets(request, owner)
        if failure is not None:
            return Batch(self, owner, answer=failure)
        return Batch(self, owner, request, items)

    def _check_tickets(self, request: Request, owner: str) -> bytes | None:
        """Return the failure response if the request has a ticket that is not valid here; otherwise None."""
        try:
            for ticket in (request.frame[bound.start : bound.end] for bound in credentials(request)):
                self.state.tickets.find(ticket, owner)
        except OperationFailed as failure:
            return compose.failure(request, failure.reason_in(request.version), str(failure))
        return None

    def handle(self, frame: bytes, owner: str) -> bytes:
        """Execute a whole request at once and return the response."""
        batch = self.begin(frame, owner)
        while batch.pending is not None:
            batch.execute()
        return batch.answer()


def _payload(item: RequestItem) -> Node:
    span = item.fields.get(Tag.REQUEST_PAYLOAD)
    return Node.parse(item.frame, _EMPTY if span is None else _EMPTY._replace(start=span[0], end=span[1]))


def _undecodable(error: ProtocolError) -> bytes:
    version = error.version if error.version in VERSIONS else None
    return compose.failure(None, ResultReason.INVALID_MESSAGE, str(error), version=version or FALLBACK_VERSION)


def _check_request(request: Request, *, may_defer: bool) -> bytes | None:
    """Return the failure response if no item of the request may be executed; otherwise None."""
    if request.version not in VERSIONS:
        message = "protocol version {}.{} is not supported by this key manager".format(*request.version)
        return compose.failure(None, ResultReason.INVALID_MESSAGE, message)
    if request.batch_error_continuation_option == BatchErrorContinuationOption.UNDO:
        return compose.failure(
            request, ResultReason.FEATURE_NOT_SUPPORTED, "Batch Error Continuation Option Undo is not supported"
        )
    if request.asynchronous_indicator == AsynchronousIndicator.MANDATORY and not may_defer:
        return compose.failure(
            request, ResultReason.FEATURE_NOT_SUPPORTED, "asynchronous operations are not enabled at this key manager"
        )
    return None


def _must_defer(request: Request) -> bool:
    """Return whether the request demands asynchronous operations: Mandatory in 2.x, true (as OPTIONAL) in 1.x."""
    indicator = request.asynchronous_indicator
    if indicator == AsynchronousIndicator.OPTIONAL:
        return request.version < (2, 0)
    return indicator == AsynchronousIndicator.MANDATORY


class Batch:
    """A request that is being executed.

    Call ``execute`` while ``pending`` is not None, then send ``answer()``. If ``undecodable`` is True, close the
    connection after the answer: the bytes that follow can't be trusted. Set ``access`` before each ``execute`` if the
    key manager is not a master. ``wrote`` is True once an operation that writes has succeeded.
    """

    def __init__(
        self,
        engine: Engine,
        owner: str,
        request: Request | None = None,
        items: Sequence[tuple[RequestItem, Node]] = (),
        *,
        answer: bytes | None = None,
        undecodable: bool = False,
    ) -> None:
        self.undecodable = undecodable
        self.access = Access.FULL
        self.wrote = False
        self._engine = engine
        self._owner = owner
        self._request = request
        self._pending = list(items)
        self._is_asynchronous = request is not None and engine.defer is not None and _must_defer(request)
        self._placeholders = Placeholders()
        self._results: list[Result] = []
        self._answer = answer
        self._max_response_size = request.maximum_response_size if request is not None else None

    def __repr__(self) -> str:
        return f"<Batch of {self._owner}: {len(self._results)} executed, {len(self._pending)} pending>"

    @property
    def operations(self) -> tuple[int, ...]:
        """All operations of the request; none if it could not be decoded."""
        return () if self._request is None else tuple(item.operation for item in self._request.items)

    @property
    def unique_identifiers(self) -> tuple[str, ...]:
        """The unique identifiers in the payloads; none if the request could not be decoded."""
        items = () if self._request is None else self._request.items
        return tuple(uid for item in items for uid in _requested_uids(item))

    @property
    def pending(self) -> int | None:
        """The operation that ``execute`` executes next; None after the last."""
        return self._pending[0][0].operation if self._pending else None

    @property
    def cost(self) -> tuple[tuple[str, ...], bool]:
        """The names of the pending item's cost, and whether the operation cost applies. A refused item is free."""
        item, payload = self._pending[0]
        rule = OPERATIONS.get(item.operation)
        if rule is None or not rule.is_permitted(self.access) or self._is_deferred(rule):
            return (), False
        return cost_names(item.operation, payload), rule.charged

    def execute(self) -> None:
        """Execute the pending item, and record it in the journal."""
        item, payload = self._pending.pop(0)
        try:
            rule = self._rule(item.operation)
            if self._is_deferred(rule):
                self._results.append(self._defer(item, payload))
                return
            success = self._perform(rule, payload)
        except OperationFailed as failure:
            self._placeholders.record(item.operation, ())
            self._record(item, _requested_uids(item), reason_name(failure.reason_in(self._version)))
            self._results.append(self._failed(item, failure))
            if self._stops:
                self._pending.clear()
        else:
            self._placeholders.record(item.operation, success.uids)
            self._record(item, list(success.uids), SUCCESS)
            result = success.result or Result(ResultStatus.SUCCESS, item.operation, payload=success.payload)
            self._results.append(result._replace(unique_batch_item_id=item.unique_batch_item_id))
        self._results[-1] = self._check_size(item, self._results[-1])

    @property
    def results(self) -> list[Result]:
        """The results of the executed items."""
        return self._results

    def answer(self) -> bytes:
        """Return the response: a result for every executed item. Items after a failure may have no result."""
        return compose.encode_response(self._version, self._results) if self._answer is None else self._answer

    @property
    def _version(self) -> tuple[int, int]:
        return FALLBACK_VERSION if self._request is None else self._request.version

    @property
    def _stops(self) -> bool:
        """True if a failure ends the batch."""
        option = None if self._request is None else self._request.batch_error_continuation_option
        return option != BatchErrorContinuationOption.CONTINUE

    def _is_deferred(self, rule: OperationRule) -> bool:
        return self._is_asynchronous and rule.charged

    def _defer(self, item: RequestItem, payload: Node) -> Result:
        """Schedule an item; it will be executed even if an earlier item of the batch fails."""
        engine = self._engine
        later = Batch(engine, self._owner, self._request, [(item, payload)])
        later._is_asynchronous, later._max_response_size = False, None
        later._placeholders = self._placeholders
        deferred = DeferredOperation(item.operation)
        value = engine.state.deferred.add(self._owner, deferred)
        if engine.defer is not None:
            engine.defer(deferred, later)
        status, number = ResultStatus.OPERATION_PENDING, item.unique_batch_item_id
        return Result(status, item.operation, number, asynchronous_correlation_value=value)

    def _rule(self, operation: int) -> OperationRule:
        """Return the operation's rule. Raises OperationFailed if it is not supported or not permitted."""
        rule = OPERATIONS.get(operation)
        if rule is None or self._version < rule.since:
            name = operation_name(operation)
            raise OperationFailed(
                ResultReason.OPERATION_NOT_SUPPORTED,
                f"operation {operation} ({name}) is not supported by this key manager",
            )
        if not rule.is_permitted(self.access):
            raise OperationFailed(ResultReason.GENERAL_FAILURE, "this key manager is a standby, not master")
        return rule

    def _perform(self, rule: OperationRule, payload: Node) -> Success:
        store = self._engine.store
        context = OperationContext(
            store=store,
            server=self._engine.name,
            owner=self._owner,
            version=self._version,
            payload=payload,
            placeholders=self._placeholders,
            now=int(time.time()),
            standby=self.access is not Access.FULL,
            in_step=self._engine.in_step(),
            make_key_pair=self._engine.make_key_pair,
            state=self._engine.state,
        )
        try:
            with store.transaction() if rule.writes else nullcontext():
                success = rule.handler(context)
        except ProtocolError as error:
            raise OperationFailed(ResultReason.INVALID_MESSAGE, str(error)) from None
        except sqlite3.Error as error:
            raise OperationFailed(ResultReason.INTERNAL_SERVER_ERROR, f"the store failed: {error}") from error
        self.wrote = self.wrote or rule.writes
        return success

    def _failed(self, item: RequestItem, failure: OperationFailed) -> Result:
        return Result(
            ResultStatus.OPERATION_FAILED,
            item.operation,
            item.unique_batch_item_id,
            reason=failure.reason_in(self._version),
            message=str(failure),
            payload=failure.payload,
        )

    def _check_size(self, item: RequestItem, result: Result) -> Result:
        """Return the result, or a failure if the response is now larger than Maximum Response Size (1.4 section 6.3).

        The effects of the executed operation remain.
        """
        if self._max_response_size is None:
            return result
        if len(compose.encode_response(self._version, self._results)) <= self._max_response_size:
            return result
        message = f"the response would be larger than Maximum Response Size, {self._max_response_size} bytes"
        return self._failed(item, OperationFailed(ResultReason.RESPONSE_TOO_LARGE, message))

    def _record(self, item: RequestItem, uids: list[str], result: str) -> None:
        engine = self._engine
        if engine.journal is not None:
            operation = operation_name(item.operation)
            engine.journal.write(server=engine.name, owner=self._owner, operation=operation, uids=uids, result=result)


def _requested_uids(item: RequestItem) -> list[str]:
    return [uid.rstrip(b"\0").decode(errors="replace") for uid in item.unique_identifiers]
