"""The pictures: that they are drawn, what they hold, and that nothing global is touched."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.plots import evaluation_bars, learning_curves, overoptimization
from rlhf_lightning.evaluation.plots.curves import _running_mean
from rlhf_lightning.stages.declaration import STAGES

DECLARED = {name: stage.logged for name, stage in STAGES.items()}


def _history(iterations: int = 12) -> list[HistoryRow]:
    rows = [HistoryRow("sft", step, None, "sft/loss", 2.0 / (step + 1)) for step in range(5)]
    for iteration in range(1, iterations + 1):
        figures = {
            "objective/kl": 0.5 * iteration,
            "objective/score": 0.3 * iteration,
            "objective/gold": math.sin(iteration / 4),
            "value/loss": math.nan if iteration == 3 else 1.0 / iteration,
        }
        rows += [HistoryRow("ppo", 16 * iteration, 64 * iteration, name, value) for name, value in figures.items()]
    return rows


def _ink(path: Path) -> float:
    """The share of pixels that are not white."""
    return float((imread(path)[..., :3] < 0.99).any(axis=-1).mean())


def test_learning_curves_are_drawn_even_where_a_figure_was_not_finite(tmp_path: Path) -> None:
    path = learning_curves(_history(), tmp_path / "plots" / "learning_curves.png", DECLARED)
    assert path == tmp_path / "plots" / "learning_curves.png"
    assert _ink(path) > 0.01
    # One row for SFT, one for the four figures of PPO; 2.2 inches each at 150 dots an inch.
    assert imread(path).shape[0] == 660


def test_overoptimization_draws_with_and_without_gold(tmp_path: Path) -> None:
    with_gold = overoptimization(_history(), tmp_path / "both.png")
    proxy_only = overoptimization([row for row in _history() if row.name != "objective/gold"], tmp_path / "proxy.png")
    assert with_gold is not None
    assert proxy_only is not None
    assert _ink(with_gold) > _ink(proxy_only) > 0.01


def test_evaluation_bars_of_any_number_of_policies(tmp_path: Path) -> None:
    figures = {"gold_reward": 0.5, "gold_reward_ci": [0.4, 0.6], "harmful_rate": 0.1, "kl": 2.0}
    path = evaluation_bars({"sft": {"iid": figures, "ood": figures}, "ppo": {"iid": figures}}, tmp_path / "bars.png")
    assert path is not None
    assert _ink(path) > 0.01
    one = evaluation_bars({"base": {"held_out": {"proxy_reward": -0.5}}}, tmp_path / "one.png")
    assert one is not None


def test_nothing_to_draw_leaves_no_file(tmp_path: Path) -> None:
    assert learning_curves([], tmp_path / "a.png", DECLARED) is None
    assert overoptimization([], tmp_path / "b.png") is None
    assert evaluation_bars({}, tmp_path / "c.png") is None
    assert evaluation_bars({"sft": {"iid": {"kl": 1.0}}}, tmp_path / "d.png") is None
    assert list(tmp_path.iterdir()) == []


def test_no_global_figure_is_left_open(tmp_path: Path) -> None:
    learning_curves(_history(), tmp_path / "a.png", DECLARED)
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_the_running_mean_skips_gaps() -> None:
    # Windows of one to both sides: (1, 3), (1, 3), (3, 5), (5), (5): the gap itself is filled by its neighbors.
    values = np.asarray([1.0, 3.0, math.nan, 5.0, math.nan])
    assert _running_mean(values, 1) == pytest.approx([2.0, 2.0, 4.0, 5.0, 5.0])
    assert math.isnan(_running_mean(np.full(3, math.nan), 1)[1])
