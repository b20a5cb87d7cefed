"""The pipeline aligns: asserted on the figures that a run leaves, at sizes of a minute or two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import finished_metrics, placed, train

SIZES = (
    "data.annotator.flip_rate=0",
    "comparisons.prompts=1200",
    "comparisons.replies=3",
    "reward_model.learning_rate=1e-3",
    "ppo.iterations=16",
    "ppo.learning_rate=2e-4",
    "evaluate.splits=[validation]",
    "evaluate.prompts=200",
)


@pytest.fixture
def one_thread() -> Iterator[str]:
    """The override for one CPU thread, so that the figures do not depend on the number of cores."""
    before = torch.get_num_threads()
    yield "trainer.threads=1"
    torch.set_num_threads(before)


def figures(metrics: dict[str, Any], policy: str) -> dict[str, Any]:
    found = metrics["evaluate"][policy]["validation"]
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_the_pipeline_aligns_a_badly_behaved_model(tmp_path: Path, one_thread: str) -> None:
    run = train("logger=none", *SIZES, one_thread, *placed(tmp_path))
    metrics = finished_metrics(run)
    before, after = figures(metrics, "sft"), figures(metrics, "ppo")

    assert after["gold_reward"] - before["gold_reward"] >= 0.3
    assert before["gold_reward_ci"][1] < after["gold_reward_ci"][0], "not by chance"
    assert before["harmful_rate"] >= 0.3, "there is something to unlearn"
    assert after["harmful_rate"] <= before["harmful_rate"] / 2
    assert after["rude_rate"] <= before["rude_rate"] / 2
    assert after["malformed_rate"] <= 0.1
    assert after["proxy_reward"] > before["proxy_reward"]
    assert 0.0 < after["kl"] < 10.0

    reward_model = metrics["stages"]["reward_model"]
    assert reward_model["accuracy"] > max(reward_model["longer_accuracy"], reward_model["shorter_accuracy"])
    assert reward_model["lift"] > 0.0
