"""Backend: one key manager: its name, its place in the order, its pools, and what is known of it.

Three objects decide about it, each by its own evidence, and Backend puts them together:

* Health: may it be used at all? By its own health check.
* Breaker: may it be sent a request of this kind, with this credential? By the outcomes of clients' exchanges.
* Gate, inside Slots: may a session be opened now? By the outcomes of handshakes.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import trio

from gateway.errors import BackendError, Stage
from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.breaker import Breaker, CircuitState
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.health import Health, HealthState
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots

_TOUCH: Final = Effect.TOUCH  # access to an enum member is slow
_CIRCUIT_STATES: Final = {
    CircuitState.CLOSED: "up",
    CircuitState.OPEN: "ejected",
    CircuitState.HALF_OPEN: "half_open",
}


class BackendOptions(NamedTuple):
    """What the configuration says of a backend: its share, its tier (the lowest serves), and whether it may write."""

    weight: int = 1
    priority: int = 0
    writable: bool = True


class Backend:
    """One key manager, with a pool for each credential that is shown to it. ``slots`` bounds them together.

    ``stable_id`` is its name in marks, the same in every gateway before the same key managers. ``versions`` are the
    protocol versions that it said it speaks, or None if it has not been asked. ``outstanding`` counts the exchanges for
    clients that are under way; ``turn`` belongs to the balancer.
    """

    def __init__(
        self,
        name: str,
        slots: Slots,
        pools: Mapping[str, Pool],
        *,
        health: Health | None = None,
        breaker: Breaker | None = None,
        idle_limit: IdleLimit | None = None,
        options: BackendOptions | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.name = name
        self.stable_id = name
        self.slots = slots
        self.pools = pools
        self.endpoint = endpoint or Endpoint()
        self.health = health or Health()
        self.breaker = breaker or Breaker(credentials=len(pools))
        self.idle_limit = idle_limit or IdleLimit(25.0)
        self.options = options or BackendOptions()
        self.versions: frozenset[Version] | None = None
        self.in_flight = 0
        self.turn = 0

    def __repr__(self) -> str:
        return f"<Backend {self.name} {self.state}: {self.slots!r}>"

    @property
    def state(self) -> str:
        """``up``, ``standby`` or ``down`` by its health check; ``ejected`` or ``half_open`` by its exchanges."""
        if self.health.state is not HealthState.UP:
            return str(self.health.state.value)
        return _CIRCUIT_STATES[self.breaker.state]

    @property
    def is_live(self) -> bool:
        """True if requests of at least one credential can be served, as far as is known."""
        return self.health.serves and any(not pool.is_failing for pool in self.pools.values())

    def is_available_to(self, credential: str, effect: Effect) -> bool:
        """Return True if requests of this effect with this credential should come here."""
        return self.is_reachable_with(credential) and self.allows(credential, effect)

    def allows(self, credential: str, effect: Effect) -> bool:
        """Return True if clients' exchanges do not speak against it."""
        return self.breaker.is_quiet or self.breaker.allows(credential, effect, trio.current_time())

    def is_reachable_with(self, credential: str) -> bool:
        """Return True if sessions with this credential can be had, as far as is known."""
        return self.health.serves and not self.pools[credential].is_failing

    def accepts(self, effect: Effect) -> bool:
        """Return True if its role lets it run requests of this effect."""
        return self.options.writable or effect <= _TOUCH

    def speaks(self, version: Version) -> bool:
        """Return True if it may speak a protocol version: it said so, or it has not been asked."""
        return self.versions is None or version in self.versions

    def reached(self) -> None:
        """The health check was answered: sessions may be opened again."""
        gate = self.slots.gate
        if gate.failure is not None:
            gate.reached()
            self.slots.serve()

    def on_down(self, others_serve: Callable[[str], bool]) -> None:
        """Close idle sessions. If other backends serve, have the reads try there, and the requests that wait.

        ``others_serve`` tells if another backend is available to a credential.
        """
        for credential, pool in self.pools.items():
            pool.drop_idle("ejected")
            if others_serve(credential):
                pool.interrupt_repeatable()
                pool.waiters.fail_all(
                    BackendError("it has turned down", backend=self.name, stage=Stage.CONNECT, reason="down")
                )

    def move(self, hosts: tuple[str, ...]) -> None:
        """Note the IP addresses that the backend has now: sessions to any other are closed, or when they come back."""
        has_moved = set(hosts) != set(self.endpoint.hosts)
        self.endpoint.hosts = hosts
        if has_moved:
            self.breaker.reset()
            self.reached()
            for pool in self.pools.values():
                pool.drop_outdated()

    def close(self, why: str = "drain") -> None:
        """Close every pool."""
        for pool in self.pools.values():
            pool.close(why)
