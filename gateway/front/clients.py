"""Clients: the clients of one listener after their handshake: identity, limits, conversation, drain."""

import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Final

import trio

from gateway.audit.trail import Trail
from gateway.config import LimitsConfig, ListenerConfig
from gateway.dispatcher import Dispatcher
from gateway.front.admission import Admission, Limit
from gateway.front.client_trust import ClientTrust
from gateway.front.connection_errors import ConnectionErrors
from gateway.front.conversation import ClientStream, Conversation, Phase
from gateway.front.recorder import RequestRecorder
from gateway.front.request_log import RequestLog
from gateway.front.taps import Taps
from gateway.identity import Identities, Principal
from gateway.log import Log, Throttle, quoted, shows_debug
from gateway.metrics import Metrics
from gateway.revocation import Chain, Trust
from gateway.steps import Steps
from gateway.tls import UNREADABLE_CERTIFICATE

MAX_REFUSED_CLIENTS: Final = 64  # clients that get an error and are disconnected, beside max_clients; more are closed
_LET_GO_EVERY: Final = 0.005  # s between the ends of two connections whose clients are to connect again
_QUIET: Final = 1.0  # s without a request, after which such a connection ends
_PATIENCE: Final = 10.0  # s after which such a connection ends after its next answer
_REFUSAL_TIMEOUT: Final = 3.0  # s for such a client to send a request and to read the error


class Clients:
    """The clients of one listener. They do not know where their TLS ends: see ``conversation.ClientStream``.

    Without a ``trail``, their requests are in no audit trail. ``taps`` are shown the requests.
    """

    def __init__(
        self,
        settings: ListenerConfig,
        identities: Identities,
        trust: Trust,
        *,
        admission: Admission,
        dispatcher: Dispatcher,
        limits: LimitsConfig,
        errors: ConnectionErrors,
        metrics: Metrics,
        log: Log,
        throttle: Throttle,
        trail: Trail | None = None,
        taps: Taps | None = None,
        request_log: RequestLog | None = None,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._trail = trail
        self._identities = identities
        self._trust = ClientTrust(trust)
        self._admission = admission
        self._errors = errors
        self._metrics = metrics
        self._connection_duration = metrics.client_connection_duration.labels()
        self._requests_per_connection = metrics.client_requests_per_connection.labels()
        self._log = log
        self._converse: Callable[..., Conversation] = partial(
            Conversation,
            admission=admission,
            dispatcher=dispatcher,
            limits=limits,
            settings=settings,
            metrics=metrics,
            log=log,
            throttle=throttle,
            taps=taps,
            request_log=request_log,
        )
        self._conversations: set[Conversation] = set()
        self._draining = False
        self._clients = 0  # without those that are refused
        self._refused = 0  # clients to which an error is being sent

    def __len__(self) -> int:
        return self._clients

    def __repr__(self) -> str:
        return f"<Clients of {self._settings.name}: {len(self)}>"

    @property
    def requests_in_flight(self) -> int:
        """The number of requests that were read and are not yet answered."""
        return sum(conversation.phase is Phase.ANSWERING for conversation in self._conversations)

    def identities_and_addresses(self) -> Iterator[tuple[str, str]]:
        """Yield the identity and the address of each connection at the time of the call; others may come meanwhile."""
        conversations = list(self._conversations)
        return ((conversation.identity_name, conversation.host) for conversation in conversations)

    @property
    def connections(self) -> int:
        """The number of connections, with those of clients that get an error and are disconnected."""
        return len(self._conversations)

    def drain(self) -> None:
        """Let each conversation end after its request in progress, also those that begin from now on."""
        self._draining = True
        for conversation in list(self._conversations):
            conversation.drain()

    async def let_go(self, streams: Container[ClientStream] | None = None) -> None:
        """End connections so that their clients connect again; return when all have ended.

        ``streams`` are the connections that are meant, or None for all. A connection ends if it had no request for a
        second, because no request is likely to be on its way then. After 10 s, the others end after their next answer.
        The ends are spread, 200 a second, and with them the handshakes that follow.
        """
        until = trio.current_time() + _PATIENCE
        while leaving := [each for each in self._conversations if streams is None or each.stream in streams]:
            if trio.current_time() >= until:
                for conversation in leaving:
                    conversation.end_after_answer()
            requests = {each: each.requests for each in leaving if each.phase is Phase.IDLE}
            await trio.sleep(_QUIET)
            for conversation, number in requests.items():
                if conversation.phase is Phase.IDLE and conversation.requests == number:
                    conversation.drain()
                    await trio.sleep(_LET_GO_EVERY)

    def settings_changed(self) -> None:
        """Have each conversation use the settings as they are now."""
        for conversation in self._conversations:
            conversation.settings_changed()

    async def change_identities(self, identities: Identities) -> None:
        """Identify new clients by other rules, and the connected clients, too, before their next requests.

        A client that no rule matches any more gets the error of an unidentified client for its next request. Returns
        when all clients are identified: in steps, because thousands of certificates take longer than a request may
        wait.
        """
        self._identities = identities
        steps = Steps()
        for conversation in list(self._conversations):
            if not conversation.refusal:
                certificate = conversation.stream.peer_certificate_der()
                conversation.change_principal(self._identify(certificate, conversation.peer))
            await steps.turn()

    @property
    def trust(self) -> Trust:
        """The CAs of the clients, and their CRLs."""
        return self._trust.trust

    async def change_trust(self, trust: Trust) -> None:
        """Accept clients by other CAs and CRLs, and disconnect the connected clients that are not accepted any more."""
        self._trust.trust = trust
        await self._judge_all()

    async def judge_when_due(self) -> None:
        """Disconnect the clients whose certificates have expired, or for which no current CRL speaks any more."""
        if time.time() > self._trust.due:
            await self._judge_all()

    async def _judge_all(self) -> None:
        self._trust.due = float("inf")
        steps = Steps()
        for conversation in list(self._conversations):
            if not conversation.refusal and (refusal := self._trust.refusal(conversation.chain)):
                conversation.cut(refusal)
            await steps.turn()

    def limit_before_handshake(self) -> Limit | None:
        """Return the limit that a client would exceed after its handshake, if no further client gets an error then."""
        return self._limit_reached() if self._refused >= MAX_REFUSED_CLIENTS else None

    def _limit_reached(self, principal: Principal | None = None) -> Limit | None:
        if self._clients >= self._settings.max_clients:
            return Limit.LISTENER_CLIENTS
        if self._admission.clients >= self._admission.max_clients:
            return Limit.CLIENTS
        if principal is not None and self._admission.account(principal).is_full:
            return Limit.PRINCIPAL_CLIENTS
        return None

    async def receive(self, stream: ClientStream, peer: str, _seconds: float = 0.0) -> None:
        """Serve a client until either side ends the connection. ``peer`` is its address, for the log.

        A served client's conversation is run from here: each coroutine between would cost an idle client 300 bytes.
        """
        try:
            conversation, fingerprint = self._conversation(stream, peer)
            if not conversation.is_served:
                await self._refuse(conversation, fingerprint)
                return
            self._clients += 1
            self._admission.clients += 1
            ended = "internal"
            began = self._begin(conversation)
            try:
                ended = await conversation.run()
            finally:
                self._end(conversation, began, ended)
                self._clients -= 1
                self._admission.clients -= 1
            if ended not in _ORDINARY_ENDS:
                self._errors.count(ended, peer, certificate=fingerprint)
        except Exception as error:  # noqa: BLE001 - a bug that affects one client must not end the gateway
            self._errors.count("internal", peer)
            self._log.error("internal error: client connection closed; report this bug", peer=peer, exc_info=error)

    def _conversation(self, stream: ClientStream, peer: str) -> tuple[Conversation, str | None]:
        """Identify a client. Return its conversation, and the fingerprint of its certificate if there is a trail."""
        certificate = stream.peer_certificate_der()
        principal = self._identify(certificate, peer)
        chain, refusal = self._judge(certificate, stream.issuers_der())
        if refusal:
            principal = None
        over = self._limit_reached(principal)
        recorder = None if self._trail is None else self._make_recorder(self._trail, certificate, peer)
        conversation = self._converse(
            stream, principal, peer=peer, over=over, refusal=refusal, chain=chain, recorder=recorder
        )
        return conversation, None if recorder is None else recorder.fingerprint

    def _make_recorder(self, trail: Trail, certificate: bytes | None, peer: str) -> RequestRecorder:
        return RequestRecorder(
            trail, self._dispatcher, listener=self._settings.name, client=peer, certificate=certificate
        )

    def _begin(self, conversation: Conversation) -> float:
        """Count and log a conversation that begins; end it if the gateway drains. Return the time."""
        if self._draining:
            conversation.drain()
        self._conversations.add(conversation)
        if shows_debug():  # to drop a line in structlog costs as much as to decode a request
            self._log.debug("client connected", peer=conversation.peer, identity=conversation.identity_name)
        return trio.current_time()

    def _end(self, conversation: Conversation, began: float, ended: str) -> None:
        """Count and log the end of a conversation."""
        self._conversations.discard(conversation)
        self._connection_duration.observe(trio.current_time() - began)
        self._requests_per_connection.observe(conversation.requests)
        if shows_debug():
            self._log.debug(
                "client connection ended",
                peer=conversation.peer,
                identity=conversation.identity_name,
                reason=ended,
                requests=conversation.requests,
            )

    async def _refuse(self, conversation: Conversation, certificate: str | None) -> None:
        """Send an error to a client that exceeds a limit or has no identity, and disconnect it.

        Such clients are not counted by ``max_clients``. If there are 64 of them already, only close the connection.
        """
        if self._refused < MAX_REFUSED_CLIENTS:
            self._refused += 1
            ended = "internal"
            began = self._begin(conversation)
            try:
                with trio.move_on_after(_REFUSAL_TIMEOUT):
                    ended = await conversation.run()
            finally:
                self._end(conversation, began, ended)
                self._refused -= 1
        else:
            conversation.stream.close_politely()
        peer, over = conversation.peer, conversation.over
        if over is None:
            self._errors.count(conversation.refusal or "not_authenticated", peer, certificate=certificate)
        elif conversation.requests:  # the conversation has counted the limit when it sent the error
            self._errors.count("limit", peer, certificate=certificate)
        else:
            self._errors.over_limit(over, peer, conversation.identity_name, certificate)

    def _judge(self, certificate: bytes | None, issuers: tuple[bytes, ...] | None) -> tuple[Chain | None, str]:
        """Return the chain of a client's certificate, and why it is not accepted, or ""."""
        try:
            chain = self._trust.chain_of(certificate, issuers)
        except UNREADABLE_CERTIFICATE:
            return None, "unreadable"
        return chain, self._trust.refusal(chain)

    def _identify(self, certificate: bytes | None, peer: str) -> Principal | None:
        """Return the client's principal, or None. Resumed sessions are checked, too: their handshake checks nothing."""
        try:
            return None if certificate is None else self._identities.identify(certificate)
        except UNREADABLE_CERTIFICATE as error:
            self._errors.warn(
                "certificate",
                "client rejected: its certificate cannot be read",
                peer=peer,
                detail=quoted(repr(error)),
            )
            return None


_ORDINARY_ENDS: Final = frozenset({"client", "drain", "idle_timeout"})
