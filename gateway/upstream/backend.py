"""Backend: one key manager: its name, its address, its pools."""

from collections.abc import Mapping

from gateway.upstream.pool import Pool
from gateway.upstream.slots import Slots


class Backend:
    """One key manager, with a pool for each credential that is shown to it. ``slots`` bounds them together."""

    def __init__(self, name: str, slots: Slots, pools: Mapping[str, Pool]) -> None:
        self.name = name
        self.slots = slots
        self.pools = pools

    def __repr__(self) -> str:
        return f"<Backend {self.name}: {self.slots!r}>"

    @property
    def is_live(self) -> bool:
        """Whether sessions to it can be had with at least one credential, as far as is known."""
        return any(not pool.is_failing for pool in self.pools.values())

    def close(self) -> None:
        """Close every pool."""
        for pool in self.pools.values():
            pool.close()
