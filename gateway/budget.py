"""Budgets bound how often something happens: by the requests in flight, by the number of requests, or by time."""

from collections import OrderedDict

import trio


class RetryBudget:
    """Tokens for requests that are sent a second time: at most ``retry_ratio`` of an identity's requests in flight.

    ``min_retries`` tokens exist however few requests are in flight. A token is held until the second try has ended; a
    read that finds no token waits for its turn. So retries can't become a storm: if every backend fails, retries add
    ``retry_ratio`` to the load and no more. The dispatcher counts ``in_flight``.
    """

    def __init__(self, *, retry_ratio: float, min_retries: int) -> None:
        self._ratio = retry_ratio
        self._least = min_retries
        self.in_flight = 0
        self.held = 0
        self._waiting: OrderedDict[trio.Event, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<RetryBudget {self.held} of {self._most()}, {self.in_flight} requests in flight>"

    def change(self, *, retry_ratio: float, min_retries: int) -> None:
        """Change the bound; tokens that are held stay held."""
        self._ratio, self._least = retry_ratio, min_retries
        self._serve()

    @property
    def is_nothing(self) -> bool:
        """True if no token will ever exist."""
        return not self._ratio and not self._least

    @property
    def free(self) -> int:
        """The number of tokens that can be taken now."""
        return max(0, self._most() - self.held)

    def _most(self) -> int:
        return max(self._least, int(self._ratio * self.in_flight))

    def take(self) -> bool:
        """Take a token; False if there is none. ``give_back`` must follow a True."""
        if self._waiting or self.held >= self._most():
            return False
        self.held += 1
        return True

    def give_back(self) -> None:
        """Return a token to the budget; a waiting request gets it at once."""
        self.held -= 1
        self._serve()

    async def wait(self) -> None:
        """Wait in turn for a token. ``give_back`` must follow, unless this was cancelled."""
        if self.take():
            return
        turn = trio.Event()
        self._waiting[turn] = None
        self._serve()  # more requests may be in flight than when the last token was returned
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.give_back()
            else:
                del self._waiting[turn]
            raise

    def _serve(self) -> None:
        while self._waiting and self.held < self._most():
            turn, _ = self._waiting.popitem(last=False)
            self.held += 1
            turn.set()


class LookupBudget:
    """Fallback lookups that an identity may make: a share of its requests, and a floor for quiet times.

    Each request adds ``lookup_ratio`` of a lookup, up to ``most`` saved lookups, so that the share holds at any load,
    also for a client that asks again and again for a missing object. Besides, ``min_lookups_per_second`` are allowed.
    """

    def __init__(self, *, lookup_ratio: float, min_lookups_per_second: float, most: float = 20.0) -> None:
        self._ratio = lookup_ratio
        self._floor = TokenBucket(rate=min_lookups_per_second, burst=max(1.0, min_lookups_per_second * 10))
        self._most = most
        self._held = 0.0

    def __repr__(self) -> str:
        return f"<LookupBudget {self._held:.1f}>"

    def change(self, *, lookup_ratio: float, min_lookups_per_second: float) -> None:
        """Change the share and the floor; saved lookups of the share stay."""
        self._ratio = lookup_ratio
        self._floor = TokenBucket(rate=min_lookups_per_second, burst=max(1.0, min_lookups_per_second * 10))

    def request(self) -> None:
        """Count a request, which adds its share of a lookup."""
        if self._held < self._most:
            self._held += self._ratio

    def withdraw(self, now: float) -> bool:
        """Take one lookup; False if there is none."""
        if self._held >= 1:
            self._held -= 1
            return True
        return self._floor.take(now)


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` of them held. Times are trio's, in seconds."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._held = burst
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<TokenBucket {self._held:.1f} of {self._burst:g}, {self._rate:g}/s>"

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        if self._at is not None:
            self._held = min(self._burst, self._held + (now - self._at) * self._rate)
        self._at = now
        if self._held < 1:
            return False
        self._held -= 1
        return True
