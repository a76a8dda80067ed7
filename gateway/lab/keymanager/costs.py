"""The HSM: what its work costs, and that it does one thing at a time."""

import trio


class Hsm:
    """One HSM of one key manager. Costs are in seconds; whoever comes while it is busy waits in turn."""

    def __init__(self, handshake_cost: float = 0.0, operation_cost: float = 0.0) -> None:
        self._handshake_cost = handshake_cost
        self._operation_cost = operation_cost
        self._lock = trio.Lock()

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
        if seconds:
            async with self._lock:
                await trio.sleep(seconds)
