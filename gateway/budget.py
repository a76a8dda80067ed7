"""Buckets of tokens: how often something may happen, measured against requests or against time."""


class RetryBudget:
    """How many requests may be tried again: a fraction of all requests, and a floor for quiet times.

    The clock is the requests themselves, so that the fraction holds at any load: where every backend fails, retries add
    ``fraction`` to the load and no more. ``floor`` is in retries a second, up to ``most`` held.
    """

    def __init__(self, *, fraction: float = 0.2, floor: float = 1.0, most: float = 20.0) -> None:
        self._fraction = fraction
        self._floor = TokenBucket(rate=floor, burst=max(1.0, floor * 10))
        self._most = most
        self._held = 0.0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._held:.1f}>"

    @property
    def tokens(self) -> float:
        """Retries that the fraction allows just now, besides the floor."""
        return self._held

    def request(self) -> None:
        """A request has come, with its share of a retry."""
        if self._held < self._most:
            self._held += self._fraction

    def withdraw(self, now: float) -> bool:
        """Take one retry; False where there is none."""
        if self._held >= 1:
            self._held -= 1
            return True
        return self._floor.take(now)


class RetryBudgets:
    """A RetryBudget for each identity: none uses up the retries of another. ``fraction`` and ``floor`` are theirs."""

    def __init__(self, fraction: float, floor: float) -> None:
        self._fraction = fraction
        self._floor = floor
        self._of: dict[str, RetryBudget] = {}

    def __repr__(self) -> str:
        return f"<RetryBudgets {self._of}>"

    def of(self, identity: str) -> RetryBudget:
        """The budget of an identity, by its name."""
        budget = self._of.get(identity)
        if budget is None:
            budget = self._of[identity] = RetryBudget(fraction=self._fraction, floor=self._floor)
        return budget


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
        """Take a token; False where there is none."""
        if self._at is not None:
            self._held = min(self._burst, self._held + (now - self._at) * self._rate)
        self._at = now
        if self._held < 1:
            return False
        self._held -= 1
        return True
