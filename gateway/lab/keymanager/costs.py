"""The HSM: what its work costs, and that it does one thing at a time."""

import trio


class Hsm:
    """One HSM of one key manager. Costs are in seconds; whoever comes while it is busy waits in turn."""

    def __init__(self, handshake_cost: float = 0.0, operation_cost: float = 0.0) -> None:
        self._handshake_cost = handshake_cost
        self._operation_cost = operation_cost
        self._lock = trio.Lock()
        self._free_at = 0.0  # the moment at which the work so far is done

    def __repr__(self) -> str:
        waiting = self._lock.statistics().tasks_waiting
        return f"<Hsm {'busy' if self._lock.locked() else 'idle'}, {waiting} waiting>"

    async def handshake(self) -> None:
        """Spend what a full handshake costs."""
        await self._spend(self._handshake_cost)

    async def operation(self) -> None:
        """Spend what one operation costs."""
        await self._spend(self._operation_cost)

    async def _spend(self, seconds: float) -> None:
        """Take so long, from when the work before is done, or from now.

        What a timer is late by is not added up: timers are late by a millisecond, and a busy HSM would be slower by
        that for everything it does.
        """
        if seconds:
            arrived = trio.current_time()
            async with self._lock:
                self._free_at = max(arrived, self._free_at) + seconds
                await trio.sleep_until(self._free_at)
