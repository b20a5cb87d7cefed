"""Figures as cells of a table: a mean with its interval, a difference with its own."""

from __future__ import annotations

import math

from rlhf_lightning.comparison.records import Delta, Estimate, Metric

NOTHING = "-"
UNPAIRED = " u"
DECIMALS = {"signed": 2, "plain": 2, "whole": 0}


def mean_cell(estimate: Estimate | None, metric: Metric) -> str:
    """`+0.42 ±0.08`; without an interval where there is one seed."""
    if estimate is None:
        return NOTHING
    return _cell(estimate.mean, estimate.high, metric.style, sign="+" if metric.style == "signed" else "")


def delta_cell(delta: Delta | None, metric: Metric) -> str:
    """`-0.10 ±0.05`, and `u` behind it where the seeds do not pair."""
    if delta is None:
        return NOTHING
    return _cell(delta.mean, delta.high, metric.style, sign="+") + (UNPAIRED if delta.method == "unpaired" else "")


def _cell(mean: float, high: float | None, style: str, sign: str) -> str:
    text = _written(mean, style, sign, mean)
    return text if high is None else f"{text} ±{_written(high - mean, style, '', mean)}"


def _written(value: float, style: str, sign: str, beside: float) -> str:
    """A figure; `beside` decides the decimals, so that a mean and its interval have the same."""
    if style == "percent":
        return f"{value:{sign}.1%}"
    if style in DECIMALS:
        return f"{value:{sign}z.{DECIMALS[style]}f}"
    decimals = 2 if beside == 0.0 else min(6, max(0, 2 - math.floor(math.log10(abs(beside)))))
    return f"{value:{sign}z.{decimals}f}"
