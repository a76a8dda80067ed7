"""Readiness: the waits for one descriptor, by trio's public functions.

A way that keeps descriptors registered with epoll was tried and not kept: see docs/performance.md, "Waits without
trio's public functions".
"""

from collections.abc import Awaitable, Callable

import trio


class Readiness:
    """The waits for one descriptor. One task may wait to read, and one to write."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<Readiness of descriptor {self._descriptor}>"

    def readable(self) -> Awaitable[None]:
        """Wait until the descriptor can be read. Raises trio.ClosedResourceError if ``interrupt`` is called."""
        return trio.lowlevel.wait_readable(self._descriptor)  # noqa: ASYNC105 - the caller awaits it

    def writable(self) -> Awaitable[None]:
        """Wait until the descriptor can be written. Raises trio.ClosedResourceError if ``interrupt`` is called."""
        return trio.lowlevel.wait_writable(self._descriptor)  # noqa: ASYNC105 - as above

    async def serve(self, action: Callable[[], None]) -> None:
        """Call ``action`` each time the descriptor can be read; it may be called without a current task.

        Raises the exception of ``action``, and trio.ClosedResourceError if ``interrupt`` is called.
        """
        while self._descriptor >= 0:
            await self.readable()
            action()
        raise trio.ClosedResourceError("the descriptor was closed")

    def interrupt(self) -> None:
        """Raise trio.ClosedResourceError in the tasks that wait."""
        trio.lowlevel.notify_closing(self._descriptor)

    def close(self) -> None:
        """End all waits, as ``interrupt`` does. To be called before the descriptor is closed, and once."""
        self.interrupt()
        self._descriptor = -1
