"""Fewer points for long curves, by a rule that keeps the seeds of a group at the same steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_lightning.evaluation.curves import Point


class Thinned(NamedTuple):
    """A curve as the page gets it: three lists of one length, `episodes` None where some have none."""

    step: tuple[float, ...]
    episodes: tuple[float, ...] | None
    value: tuple[float | None, ...]


def rounded(value: object) -> float | None:
    """A figure to five significant digits; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def stride(lengths: Sequence[int], most: int) -> int:
    """Number of neighbouring points to merge into one, so that the longest curve keeps at most `most` points."""
    return max(1, math.ceil(max(lengths, default=0) / most))


def thin(points: Sequence[Point], size: int) -> Thinned:
    """The mean of each `size` neighbouring points: of their steps, episodes and finite values.

    Nothing is left out, so a curve keeps its level; a spike is lowered but stays where it was.
    """
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    episodes = [[point.episodes for point in stretch if point.episodes is not None] for stretch in stretches]
    values = [[point.value for point in stretch if math.isfinite(point.value)] for stretch in stretches]
    return Thinned(
        step=tuple(_mean([point.step for point in stretch]) for stretch in stretches),
        episodes=tuple(map(_mean, episodes)) if all(episodes) else None,
        value=tuple(rounded(_mean(found)) if found else None for found in values),
    )


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return int(mean) if mean.is_integer() else mean
