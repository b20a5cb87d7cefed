"""Rate limit of requests to a server."""

from __future__ import annotations

import time
from collections.abc import Callable


class RequestRate:
    """Keeps requests apart, so that no minute holds more than its share.

    Args:
        per_minute: at most; None: as often as one likes.
        clock: seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart = 60.0 / per_minute if per_minute is not None else 0.0
        self._clock = clock
        self._next = clock()

    def seconds_to_wait(self) -> float:
        """0: now it is the caller's turn, and the next one's comes later. Otherwise: ask again after so long."""
        now = self._clock()
        if now < self._next:
            return self._next - now
        self._next = now + self._apart
        return 0.0
