"""Quantiles of Student's t, for intervals over a handful of seeds."""

from __future__ import annotations

import functools
import math

STEPS = 2000
"""Even number of Simpson's intervals; quantiles are then good to more than six digits."""


@functools.cache
def quantile(degrees: float, level: float = 0.975) -> float:
    """The value that a t-distributed number stays below with probability `level`.

    With t = sqrt(degrees) tan(angle) the density of t becomes cos(angle)^(degrees - 1), up to a constant: smooth and on
    a bounded range, so Simpson's rule and bisection suffice.

    Args:
        degrees: of freedom, at least 1; Welch's need not be whole.
        level: from 0.5 to less than 1.

    Raises:
        ValueError: the arguments are out of their ranges.
    """
    if degrees < 1.0 or not 0.5 <= level < 1.0:
        raise ValueError(f"degrees={degrees} must be at least 1, level={level} in [0.5, 1)")
    half = math.sqrt(math.pi) * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)) / 2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 + 0.5 * _mass(degrees, middle) / half < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _mass(degrees: float, angle: float) -> float:
    """The integral of cos^(degrees - 1) from 0 to an angle."""
    width = angle / STEPS
    ends = 1.0 + math.pow(math.cos(angle), degrees - 1)
    inner = sum((4 if step % 2 else 2) * math.pow(math.cos(step * width), degrees - 1) for step in range(1, STEPS))
    return width / 3 * (ends + inner)
