"""Reward against the distance from the initial policy: fit and peak of an overoptimization curve.

The distance is d = sqrt(KL), KL in nats a response between the policy in training and the reference. Under
reinforcement learning the gold reward is found to follow R(d) = R0 + d (a - b log d) (Gao, Schulman and Hilton 2022,
arXiv 2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.evaluation.curves import HistoryRow, points, rollout_stage

Floats = NDArray[np.float64]

FEWEST_POINTS = 5
LARGEST_EXPONENT = 50.0
"""A curve that turns only beyond d = e^50 does not turn within any KL that a policy can reach."""


@dataclass(frozen=True, slots=True)
class RewardPath:
    """Rewards on the way of one training, in order of iterations.

    Attributes:
        distance: (iterations,), sqrt(KL); a KL estimated below zero counts as zero.
        proxy: (iterations,), the reward that is optimized.
        gold: (iterations,), the true reward; None outside the courtesy world.
    """

    distance: Floats
    proxy: Floats
    gold: Floats | None


@dataclass(frozen=True, slots=True)
class RewardFit:
    """R(d) = start + d (a - b log d), and R(0) = start."""

    start: float
    a: float
    b: float

    def at(self, distance: Floats) -> Floats:
        """The fitted reward at each distance."""
        return self.start + distance * (self.a - self.b * _log(distance))

    def explained(self, distance: Floats, reward: Floats) -> float:
        """The share of the rewards' variance that the fit explains; 0 where they do not vary."""
        variance = float(np.var(reward))
        return 1.0 - float(np.mean((reward - self.at(distance)) ** 2)) / variance if variance > 0.0 else 0.0

    @property
    def peak(self) -> float | None:
        """The distance where the reward is highest: dR/dd = a - b log d - b = 0; None where it never falls."""
        exponent = self.a / self.b - 1.0 if self.b > 0.0 else math.inf
        return math.exp(exponent) if exponent < LARGEST_EXPONENT else None


def reward_path(history: Iterable[HistoryRow]) -> RewardPath | None:
    """The path of a training from its history; None where it logged no score with a KL beside it.

    Iterations where one of the figures is missing or not finite are left out.
    """
    rows = list(history)
    stage = rollout_stage(rows) or ""
    curves = {
        name: {point.step: point.value for point in points(rows, stage, f"objective/{name}")}
        for name in ("kl", "score", "gold")
    }
    names = [name for name, curve in curves.items() if curve]
    if not {"kl", "score"} <= set(names):
        return None
    shared = sorted(set.intersection(*(set(curves[name]) for name in names)))
    table = np.asarray([[curves[name][step] for name in names] for step in shared]).reshape(len(shared), len(names))
    kept = table[np.isfinite(table).all(axis=1)]
    if not len(kept):
        return None
    column = {name: kept[:, index] for index, name in enumerate(names)}
    return RewardPath(np.sqrt(np.maximum(column["kl"], 0.0)), column["score"], column.get("gold"))


def fit_reward(distance: Floats, reward: Floats) -> RewardFit | None:
    """Least squares for `start`, a and b; None with fewer than five points or where they do not determine the curve.

    The start is fitted too: the first iteration is one noisy batch like the others.
    """
    if len(distance) < FEWEST_POINTS:
        return None
    design = np.stack([np.ones_like(distance), distance, -distance * _log(distance)], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, reward)
    if rank < design.shape[1]:
        return None
    start, a, b = (float(value) for value in coefficients)
    return RewardFit(start, a, b)


def _log(distance: Floats) -> Floats:
    """The logarithm, and 0 at distance 0, where it is multiplied by 0."""
    return np.asarray(np.log(np.where(distance > 0.0, distance, 1.0)))
