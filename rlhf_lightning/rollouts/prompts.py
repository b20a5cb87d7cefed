"""Order of the training prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import DataError


class PromptStream:
    """Prompts in an order that is redrawn each time all have been used, a function of the seed alone.

    Args:
        prompts: the pool.
        seed: decides the order.

    Raises:
        DataError: the pool is empty.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], seed: int) -> None:
        if not prompts:
            raise DataError("There are no prompts to sample from.", fix="check the data group and its length limits")
        self.prompts = tuple(prompts)
        self.seed = seed
        self.taken = 0
        self._lap = -1
        self._lap_order: list[int] = []

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next `count` prompts."""
        batch = [self._at(self.taken + offset) for offset in range(count)]
        self.taken += count
        return batch

    def _at(self, position: int) -> EncodedPrompt:
        lap, place = divmod(position, len(self.prompts))
        return self.prompts[self._order(lap)[place]]

    def _order(self, lap: int) -> list[int]:
        if self._lap != lap:
            self._lap = lap
            self._lap_order = list(range(len(self.prompts)))
            random.Random(f"{self.seed}:{lap}").shuffle(self._lap_order)
        return self._lap_order
