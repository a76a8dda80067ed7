"""Backend: one key manager: its name, its place in the order, its health, its pools."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gateway.kmip.messages import Version
from gateway.policy import Effect
from gateway.upstream.health import Health, State
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.pool import Pool
from gateway.upstream.session import Site
from gateway.upstream.slots import Slots

_SICK_CREDENTIALS: Final = 2  # whose sessions fail, before that is the backend's fault and not theirs


_TOUCH: Final = Effect.TOUCH  # a member of an enumeration is slow to come by


class Traits(NamedTuple):
    """What the configuration says of a backend: its share, its tier (the lowest serves), and whether it may write."""

    weight: int = 1
    priority: int = 0
    writable: bool = True


class Backend:
    """One key manager, with a pool for each credential that is shown to it. ``slots`` bounds them together.

    ``known_as`` is what marks call it: what every gateway before the same key managers calls it, too.
    ``versions`` are the protocol versions that it said it speaks, or None while it has not been asked. ``outstanding``
    counts the exchanges for clients that are under way; ``turn`` belongs to the balancer.
    """

    def __init__(
        self,
        name: str,
        slots: Slots,
        pools: Mapping[str, Pool],
        *,
        health: Health | None = None,
        idle_limit: IdleLimit | None = None,
        traits: Traits | None = None,
        site: Site | None = None,
    ) -> None:
        self.name = name
        self.known_as = name
        self.slots = slots
        self.pools = pools
        self.site = site or Site()
        self.health = health or Health()
        self.idle_limit = idle_limit or IdleLimit(25.0)
        self.traits = traits or Traits()
        self.versions: frozenset[Version] | None = None
        self.outstanding = 0
        self.turn = 0
        self._is_sick = False
        self._proved_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Backend {self.name} {self.state}: {self.slots!r}>"

    @property
    def state(self) -> str:
        """``up``, ``standby``, ``down`` by its own probes, or ``ejected`` because sessions to it fail."""
        return "ejected" if self._is_sick and self.health.state is State.UP else self.health.state.value

    @property
    def serves(self) -> bool:
        """Whether it is believed to be able to serve some credential."""
        return self.health.serves and not self._is_sick

    @property
    def is_live(self) -> bool:
        """Whether requests of at least one credential can be served, as far as is known."""
        return self.serves and any(not pool.is_failing for pool in self.pools.values())

    def is_available_to(self, credential: str) -> bool:
        """Whether requests with this credential should come here."""
        return self.health.serves and not self._is_sick and not self.pools[credential].is_failing

    def accepts(self, effect: Effect) -> bool:
        """Whether its role lets it run requests of this effect."""
        return self.traits.writable or effect <= _TOUCH

    def speaks(self, version: Version) -> bool:
        """Whether it may speak a protocol version: it said so, or nobody has asked."""
        return self.versions is None or version in self.versions

    def proved(self, now: float) -> None:
        """Its probe was answered."""
        self._proved_at = now

    def judge(self) -> bool:
        """Decide whether it is sick: sessions of several credentials fail, and nobody's have worked since.

        Returns whether that has changed.
        """
        failed_at = sorted(pool.failing_since for pool in self.pools.values() if pool.is_failing)
        was_sick, self._is_sick = self._is_sick, False
        if len(failed_at) >= _SICK_CREDENTIALS:
            worked_at = max(
                self._proved_at, *(pool.answered_at for pool in self.pools.values() if not pool.is_failing), _NEVER
            )
            self._is_sick = worked_at < failed_at[_SICK_CREDENTIALS - 1]
        return self._is_sick is not was_sick

    def let_go(self, others_serve: Callable[[str], bool]) -> None:
        """It turned down: its idle sessions go, and where others can serve them, so do the reads that wait for it.

        ``others_serve`` tells whether another backend is available to a credential.
        """
        for credential, pool in self.pools.items():
            pool.drop_idle("ejected")
            if others_serve(credential):
                pool.interrupt_repeatable()

    def move(self, hosts: tuple[str, ...]) -> None:
        """Note the IP addresses that the backend has now: sessions to any other are closed, or when they come back."""
        has_moved = set(hosts) != set(self.site.hosts)
        self.site.hosts = hosts
        if has_moved:
            for pool in self.pools.values():
                pool.moved()

    def close(self, why: str = "drain") -> None:
        """Close every pool."""
        for pool in self.pools.values():
            pool.close(why)


_NEVER: Final = float("-inf")
