"""Recorder: the lines of one client connection in the audit trail.

A recorder stands between a conversation and the dispatcher, and writes one line for each request, however it ends. If
the trail must be written (``on_failure = "refuse"``), the dispatcher asks the recorder before it forwards a request: a
change is forwarded once a line ``intent`` is on the disk, and a read as long as the trail can be written.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import trio

from gateway.audit.lines import (
    answered_items,
    asked_items,
    client_fields,
    is_plain_success,
    only_identifier,
    refused_items,
    request_fields,
    served_items,
    text,
)
from gateway.audit.trail import Trail
from gateway.dispatcher import Answer, Dispatcher, Job, Observer, refusal
from gateway.errors import AuditError, ProtocolError
from gateway.identity import Principal
from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Request, Response, Version
from gateway.kmip.spec import ResultStatus, Tag
from gateway.policy import POLICY_REFUSALS, REASONS, Refusal, effect_of
from gateway.upstream.session import Payer

_SUCCESS: Final = int(ResultStatus.SUCCESS)
_CORRELATION: Final = int(Tag.CLIENT_CORRELATION_VALUE)
_KEPT: Final = 64  # lines that are kept for a connection, but for their identifiers
_UNAVAILABLE: Final = "the gateway can't write its audit trail, and serves no request without it; try again later"


class RequestRecorder:
    """Writes a line for each request of a connection. ``certificate`` is the client's, in DER."""

    def __init__(
        self, trail: Trail, dispatcher: Dispatcher, *, listener: str, client: str, certificate: bytes | None
    ) -> None:
        self._trail = trail
        self._dispatcher = dispatcher
        self._listener = listener
        self._client = client
        self.fingerprint = None if certificate is None else hashlib.sha256(certificate).hexdigest()
        self._principal: Principal | None = None
        self._also: Observer | None = None
        self._usual: dict[tuple[int, Version, object], tuple[str, str]] = {}
        self._about_client = self._describe(None)
        # Of the request under way: a conversation has one at a time.
        self._tries = 0
        self._backend = ""
        self._is_read = True
        self._intent = 0  # the number of its line, or 0

    def __repr__(self) -> str:
        return f"<RequestRecorder of {self._client}>"

    def _describe(self, principal: Principal | None) -> str:
        self._principal = principal
        self._usual.clear()
        return client_fields(self._listener, self._client, self.fingerprint, principal)

    # Between a conversation and the dispatcher -----------------------------------------------------------------------

    async def dispatch(
        self,
        request: Request,
        principal: Principal,
        client_disconnected: Callable[[], bool],
        payer: Payer | None,
        observer: Observer | None = None,
        *,
        now: float,
    ) -> Answer:
        """Have the dispatcher answer a request, and write its line. ``observer``, a tap's, learns of it, too."""
        if principal is not self._principal:
            self._about_client = self._describe(principal)
        self._tries, self._backend, self._intent = 0, "", 0
        self._also = observer
        answer: Answer | None = None
        try:
            answer = await self._dispatcher.dispatch(request, principal, client_disconnected, payer, self, now=now)
            return answer
        finally:
            if self._trail.writes_all or self._is_recorded(request, answer):
                seconds = trio.current_time() - now
                line = None if answer is None else self._usual_line(request, answer)
                self._trail.add(self._line(request, answer, seconds) if line is None else f"{line}{seconds:.6f}")

    def refused(self, request: Request | None, principal: Principal | None, why: Refusal) -> None:
        """Write the line of a request that the conversation has refused; None if it could not be decoded."""
        if principal is not self._principal:
            self._about_client = self._describe(principal)
        if request is None:
            self._trail.add(
                f'"event":"request",{self._about_client},"items":[],"result":"gateway_error",'
                f'"refusal":"{why.value}","backend":null,"tries":0,"duration":0'
            )
            return
        reason = REASONS[why][request.version >= (2, 0)]
        self._trail.add(
            f'"event":"request",{self._about_client},{request_fields(request)},'
            f'"items":[{refused_items(request, reason)}],"result":"gateway_error","refusal":"{why.value}",'
            '"backend":null,"tries":0,"duration":0'
        )

    @property
    def measures(self) -> bool:
        """True if a tap wants the times of exchanges."""
        return self._also is not None

    @property
    def refuses(self) -> bool:
        """True if no request may be forwarded without its line."""
        return self._trail.refuses

    # Of the dispatcher -----------------------------------------------------------------------------------------------

    async def before_forwarding(self, job: Job) -> Answer | None:
        """Write the intent of a change, if the trail must be written. Return the refusal if that can't be done."""
        trail = self._trail
        if not job.effect.is_read:
            fields = f'"event":"intent",{self._about_client},{request_fields(job.request)}'
            try:
                self._intent = await trail.commit(f'{fields},"items":[{asked_items(job.request)}]')
            except AuditError as error:
                return refusal(Refusal.AUDIT_UNAVAILABLE, _UNAVAILABLE, job.request, detail=str(error))
        elif trail.writes_all and trail.is_impaired:
            detail = trail.error or "the queue of the audit trail is full"
            return refusal(Refusal.AUDIT_UNAVAILABLE, _UNAVAILABLE, job.request, detail=detail)
        return None

    def after_forwarding(self, job: Job) -> None:
        """Take the tries of a request, and the backend that was tried last."""
        self._tries = job.tries
        if job.tried:
            self._backend = job.tried[-1].name
        if self._also is not None:
            self._also.after_forwarding(job)

    # Lines -----------------------------------------------------------------------------------------------------------

    def _is_recorded(self, request: Request, answer: Answer | None) -> bool:
        """Return False for a read that was answered."""
        return answer is None or answer.refusal is not None or not effect_of(request).is_read

    def _usual_line(self, request: Request, answer: Answer) -> str | None:
        """Return the line of a successful operation on one object at the first try, up to its duration; or None.

        A fast path for most requests: all but the identifier is kept for each operation, version and backend.
        """
        response = answer.response
        if response is None or self._intent or self._tries != 1 or len(request.items) != 1:
            return None
        item = request.items[0]
        identifier = only_identifier(item)
        if identifier is None or _CORRELATION in request.fields or not is_plain_success(response, item.operation):
            return None
        backend = answer.backend
        key = (item.operation, request.version, backend)
        around = self._usual.get(key)
        if around is None:
            around = self._keep_usual(key, request, answer, identifier)
        return f"{around[0]}{identifier}{around[1]}"

    def _keep_usual(
        self, key: tuple[int, Version, object], request: Request, answer: Answer, identifier: str
    ) -> tuple[str, str]:
        if len(self._usual) >= _KEPT:
            self._usual.clear()
        line = self._line(request, answer, 0.0)
        before, _, after = line.rpartition(identifier)
        around = self._usual[key] = (before, after.removesuffix("0.000000"))
        return around

    def _line(self, request: Request, answer: Answer | None, seconds: float) -> str:
        items, result = outcome(request, answer)
        backend = self._backend if answer is None or answer.backend is None else answer.backend.name
        return (
            f'"event":"request",{self._about_client},{request_fields(request)},"items":[{items}],{result},'
            f'"backend":{text(backend) if backend else "null"},"tries":{self._tries},"duration":{seconds:.6f}'
            f"{f',{chr(34)}intent{chr(34)}:{self._intent}' if self._intent else ''}"
        )


def outcome(request: Request, answer: Answer | None) -> tuple[str, str]:
    """Return the items of a request's line, and its members ``policy``, ``result`` and ``refusal``."""
    if answer is None:
        return asked_items(request), '"policy":"allowed","result":"cut_off"'
    response = answer.response
    if response is not None:
        return answered_items(request, response), f'"policy":"allowed","result":"{result_of(response)}"'
    why = answer.refusal
    if why is None:
        return served_items(request), '"policy":"allowed","result":"success"'
    policy = "refused" if why in POLICY_REFUSALS else "allowed"
    result = "client_disconnected" if why is Refusal.CLIENT_DISCONNECTED else "gateway_error"
    return _own_error(request, answer), f'"policy":"{policy}","result":"{result}","refusal":"{why.value}"'


def _own_error(request: Request, answer: Answer) -> str:
    """Return the items of a request that the gateway answered with an error, each with its own reason."""
    try:
        return answered_items(request, decode_response(answer.frame, max_items=len(request.items)))
    except ProtocolError:  # it is the gateway's own; the line must be written nevertheless
        return asked_items(request)


def result_of(response: Response) -> str:
    """Return the result of a whole answer, in the words of the metric ``requests_total``."""
    items = response.items
    if len(items) == 1:
        return _RESULTS.get(items[0].status, "operation_failed")
    statuses = {item.status for item in items}
    if statuses == {_SUCCESS}:
        return "success"
    pending = {_SUCCESS, int(ResultStatus.OPERATION_PENDING)}
    return "operation_pending" if statuses <= pending else "operation_failed"


_RESULTS: Final = {_SUCCESS: "success", int(ResultStatus.OPERATION_PENDING): "operation_pending"}
