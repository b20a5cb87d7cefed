"""How often a server is asked."""

from __future__ import annotations

import time
from collections.abc import Callable


class RequestRate:
    """Spaces requests evenly, so that no minute holds more than its share.

    Args:
        per_minute: at most; None: as often as one likes.
        clock: seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / per_minute if per_minute is not None else 0.0
        self._clock = clock
        self._next = clock()

    def reserve(self) -> float:
        """Takes the next free place: the seconds to wait for it. A place that nobody took is not made up for."""
        now = self._clock()
        place = max(now, self._next)
        self._next = place + self._interval
        return place - now
