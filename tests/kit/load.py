"""Clients of the gateway that record every answer in a ledger, and never repeat a request."""

import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key, key_value

from gateway.errors import GatewayError
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation
from gateway.tls import client_context
from tests.kit.ledger import Exchange, Ledger, Outcome, RequestKind, outcome_of
from tests.kit.processes import Gateway

#: A unique identifier that no client can get: the scheduler makes every key manager hang up on a Get of it.
POISON = "poison"
_OPERATIONS = {
    RequestKind.CREATE: Operation.CREATE,
    RequestKind.GET: Operation.GET,
    RequestKind.FOREIGN_GET: Operation.GET,
    RequestKind.POISON: Operation.GET,
}


@dataclass
class Keys:
    """The keys that the clients of an identity know; a key has its value after the first Get."""

    identity: str
    uids: list[str] = field(default_factory=list)
    values: dict[str, bytes] = field(default_factory=dict)


class Caller:
    """A client with its own certificate. ``patience`` is the time in seconds for which it waits for an answer.

    A method that sends a request returns None if no answer came; the session can't be used any more.
    """

    def __init__(self, gateway: Gateway, name: str, keys: Keys, ledger: Ledger, *, patience: float) -> None:
        self._name = name
        self._numbers = itertools.count()
        self._address = gateway.address
        pair = gateway.certificates.client(name)
        self._context = client_context(*pair, gateway.certificates.path("gateway_ca.pem"))
        self._keys = keys
        self._ledger = ledger
        self._patience = patience

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Client]:
        """Open a session for the length of a block; a session that fails is an anomaly."""
        try:
            async with connect(self._address, self._context, server_name="localhost") as client:
                yield client
        except (GatewayError, OSError) as error:
            self._ledger.anomalies.append(f"no session with the gateway: {error!r}")

    async def create(self, client: Client) -> Response | None:
        """Create a key, and add it to the keys of the identity."""
        request = f"{self._name} {next(self._numbers)}"
        return await self._ask(client, RequestKind.CREATE, create_key(contact=request), request=request)

    async def get(self, client: Client, uid: str) -> Response | None:
        """Get a key of the identity; its value must not have changed since the last Get."""
        response = await self._ask(client, RequestKind.GET, get_key(uid), uid)
        if response is not None and self._ledger.exchanges[-1].outcome is Outcome.SUCCESS:
            value = key_value(response)
            if self._keys.values.setdefault(uid, value) != value:
                self._ledger.anomalies.append(f"{uid} has two values")
        return response

    async def get_foreign(self, client: Client, uid: str) -> Response | None:
        """Try to get a key of another identity."""
        return await self._ask(client, RequestKind.FOREIGN_GET, get_key(uid), uid)

    async def poison(self, client: Client) -> Response | None:
        """Send the request at which every key manager hangs up."""
        return await self._ask(client, RequestKind.POISON, get_key(POISON), POISON)

    async def _ask(
        self, client: Client, kind: RequestKind, frame: bytes, uid: str = "", request: str = ""
    ) -> Response | None:
        began, started = time.time(), trio.current_time()
        response, outcome, message = None, Outcome.SILENT, ""
        try:
            with trio.move_on_after(self._patience):
                response = await client.ask(frame)
                outcome, message = outcome_of(response)
        except GatewayError as error:
            outcome, message = Outcome.CLOSED, repr(error)
        seconds = trio.current_time() - started
        if response is not None and outcome is Outcome.SUCCESS:
            answered = response.items[0].unique_identifiers[0].decode()
            if kind is RequestKind.CREATE:
                uid = answered
                self._keys.uids.append(uid)
            if response.items[0].operation != _OPERATIONS[kind] or answered != uid:
                self._ledger.anomalies.append(f"{kind.value} of {uid} was answered by {response!r} about {answered}")
        self._ledger.exchanges.append(
            Exchange(began, seconds, self._keys.identity, kind, outcome, uid, request, message)
        )
        return response


async def get_until_stopped(
    caller: Caller, keys: Keys, stop: trio.Event, rng: random.Random, *, pause: float, kept: bool = True
) -> None:
    """Get keys until ``stop`` is set, over a kept session or a new session each time; ``pause`` is in seconds."""
    while not stop.is_set():
        async with caller.session() as client:
            while await caller.get(client, rng.choice(keys.uids)) is not None and not stop.is_set():
                await trio.sleep(rng.uniform(0, 2 * pause))
                if not kept:
                    break
