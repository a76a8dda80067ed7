"""Backend: one key manager, with its options, its pools and its state.

Three objects decide about the use of a backend, each from evidence of its own; Backend combines them:

* Health: may the backend be used at all? From its health checks.
* Breaker: may the backend be sent a request of this kind with this credential? From the outcomes of clients' exchanges.
* Gate, inside Slots: may a session be opened now? From the outcomes of handshakes.
"""

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

import trio

from gateway.config import BackendOptions, PoolConfig
from gateway.errors import BackendError, Stage
from gateway.identity import Principal
from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.breaker import Breaker, CircuitState
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.health import Health, HealthState
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.opening import REFUSED
from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots

_CIRCUIT_STATES: Final = {
    CircuitState.CLOSED: "up",
    CircuitState.OPEN: "ejected",
    CircuitState.HALF_OPEN: "half_open",
}


class Backend:
    """One key manager, with a pool for each credential. ``slots`` bounds the sessions of all pools together.

    Pools of minted credentials are built when a request is about to be sent with them: ``build_pool`` builds the pool
    of a principal. ``mints`` is True if an identity has minted credentials.

    ``stable_id`` names the backend in marks and affinity entries; it is the same in every gateway in front of the same
    key managers. ``versions`` are the protocol versions that the backend reported, or None before the first report.
    ``in_flight`` counts the exchanges for clients that are under way; ``turn`` belongs to the balancer. ``since`` is
    the time of the last change of the state, and ``last_error`` the latest error with its time, in Unix seconds;
    ``watch`` keeps both. ``last_health_check_success`` is in Unix seconds, too; 0 before the first. ``is_drained`` is
    True after ``drain``.
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
        mints: bool = False,
    ) -> None:
        self.name = name
        self.build_pool: Callable[[Principal], Pool] | None = None
        self.mints = mints
        self._closed = ""  # or the reason for which pools that are built later are closed, too
        self.stable_id = name
        self.slots = slots
        self.pools = dict(pools)  # changes as a reload adds and removes identities
        self.endpoint = endpoint or Endpoint()
        self.health = health or Health()
        self.breaker = breaker or Breaker()
        self.count_credentials()
        self.idle_limit = idle_limit or IdleLimit(PoolConfig().idle_timeout)
        self.options = options or BackendOptions()
        self.versions: frozenset[Version] | None = None
        self.in_flight = 0
        self.turn = 0
        self.is_drained = False
        self.since = time.time()
        self.last_error: tuple[str, float] | None = None
        self.last_health_check_success = 0.0

    def __repr__(self) -> str:
        return f"<Backend {self.name} {self.state}: {self.slots!r}>"

    @property
    def state(self) -> str:
        """``drained`` by an operator.

        Else ``up``, ``standby`` or ``down`` by its health check; ``ejected`` or ``half_open`` by its exchanges.
        """
        if self.is_drained:
            return "drained"
        if self.health.state is not HealthState.UP:
            return str(self.health.state.value)
        return _CIRCUIT_STATES[self.breaker.state]

    @property
    def is_live(self) -> bool:
        """True if requests of at least one credential can be served, by all evidence so far."""
        if self.is_drained or not self.health.serves:
            return False
        if self.mints and self.slots.gate.failure is None:  # a client that has no pool yet can be served
            return True
        return any(not pool.is_failing for pool in self.pools.values())

    def is_available_to(self, credential: str, effect: Effect) -> bool:
        """Return True if requests of this effect with this credential should be sent to this backend."""
        return self.is_reachable_with(credential) and self.allows(credential, effect)

    def allows(self, credential: str, effect: Effect) -> bool:
        """Return True if the breaker lets requests of this effect with this credential pass."""
        return self.breaker.is_quiet or self.breaker.allows(credential, effect, trio.current_time())

    def is_reachable_with(self, credential: str) -> bool:
        """Return True if health checks succeed and sessions with this credential can be opened."""
        return not self.is_drained and self.health.serves and not self.is_failing_with(credential)

    def is_failing_with(self, credential: str) -> bool:
        """Return True if no session with this credential can be opened, as far as is known. Builds no pool."""
        pool = self.pools.get(credential)
        return self.slots.gate.failure is not None if pool is None else pool.is_failing

    def has_room_for(self, credential: str) -> bool:
        """Return True if a request with this credential would not have to wait. Builds no pool."""
        pool = self.pools.get(credential)
        return self.slots.has_room() if pool is None else pool.has_room

    def room_for(self, credential: str) -> int:
        """Return how many requests with this credential would not have to wait. Builds no pool."""
        pool = self.pools.get(credential)
        return self.slots.free if pool is None else pool.room

    def pool_of(self, principal: Principal) -> Pool:
        """Return the pool of a principal's credential; built now if the credential is minted and has none."""
        pool = self.pools.get(principal.credential)
        if pool is None:
            if principal.names is None or self.build_pool is None:
                raise BackendError(
                    "the identity has been removed", backend=self.name, stage=Stage.CONNECT, reason="removed"
                )
            pool = self.build_pool(principal)
            self.add_pool(principal.credential, pool)
        return pool

    def accepts(self, effect: Effect) -> bool:
        """Return True if the backend's role allows requests of this effect, and the backend is not drained."""
        return not self.is_drained and (effect.is_read or self.options.role == "rw")

    def speaks(self, version: Version) -> bool:
        """Return True if the backend reported this protocol version, or has not reported any."""
        return self.versions is None or version in self.versions

    def reached(self) -> None:
        """Allow sessions to be opened again: the health check was answered, or the backend has new addresses."""
        gate = self.slots.gate
        if gate.failure is not None:
            gate.reached()
            self.slots.serve()

    def on_down(self, others_serve: Callable[[str], bool]) -> None:
        """Close idle sessions; if other backends serve, repeat the reads and the waiting requests there.

        ``others_serve`` returns True if a different backend is available to a credential.
        """
        for credential, pool in self.pools.items():
            pool.drop_idle("ejected")
            if others_serve(credential):
                pool.interrupt_repeatable()
                pool.waiters.fail_all(
                    BackendError("the backend is down", backend=self.name, stage=Stage.CONNECT, reason="down")
                )

    def set_hosts(self, hosts: tuple[str, ...]) -> None:
        """Set the IP addresses of the backend. Sessions to any other address are closed, or not lent again."""
        has_moved = set(hosts) != set(self.endpoint.hosts)
        self.endpoint.hosts = hosts
        if has_moved:
            self.breaker.reset()
            self.reached()
            for pool in self.pools.values():
                pool.drop_outdated()

    def add_pool(self, credential: str, pool: Pool) -> None:
        """Add the pool of a credential."""
        self.pools[credential] = pool
        self.count_credentials()
        if self._closed or self.is_drained:
            pool.close(self._closed or "drained")

    def count_credentials(self) -> None:
        """Tell the breaker how many credentials there are: minted ones count as two, which is all it distinguishes."""
        self.breaker.credentials = 2 if self.mints else len(self.pools)

    def remove_pool(self, credential: str) -> None:
        """Close and forget the pool of a credential, for which no request is in flight any more."""
        self.pools.pop(credential).close("removed")
        self.count_credentials()

    @property
    def error(self) -> str:
        """The reason for which requests avoid the backend now, or for which the last session was not opened, or ""."""
        if self.health.detail:
            return self.health.detail
        if self.state in {"ejected", "half_open"}:
            return self.breaker.describe(trio.current_time())
        for pool in self.pools.values():
            if (failure := pool.opening.failure) is not None:
                of = f"identity {pool.credential}: " if failure.reason in REFUSED else ""
                return f"{of}{failure.args[0]}"
        return ""

    def drain(self) -> None:
        """Take no new requests: idle sessions are closed, busy ones when their exchange ends. Health checks go on.

        The balancer must be given its backends anew afterwards, as after ``enable``.
        """
        self.is_drained = True
        for pool in self.pools.values():
            pool.close("drained")

    def enable(self) -> None:
        """Take requests again after ``drain``."""
        self.is_drained = False
        for pool in self.pools.values():
            pool.reopen()

    def set_weight(self, weight: int) -> None:
        """Change the weight. The balancer must be given its backends anew."""
        self.options = self.options.model_copy(update={"weight": weight})

    def reconnect(self, interval: float) -> int:
        """Replace all sessions, one in each ``interval`` seconds, of all pools in turn; return their number."""
        times = count(trio.current_time(), interval)
        return sum(pool.expire(times) for pool in self.pools.values())

    def close(self, why: str = "drain") -> None:
        """Close every pool."""
        self._closed = why
        for pool in self.pools.values():
            pool.close(why)
