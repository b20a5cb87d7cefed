"""Two processes align a model: asserted on the figures that the run leaves, as in `end_to_end/test_learning.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import train

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


@pytest.mark.slow
def test_two_processes_align_a_badly_behaved_model(tmp_path: Path) -> None:
    choices = ("logger=none", "seed=2", *SIZES, "trainer=ddp", "trainer.accelerator=cpu")
    run = train(tmp_path / "run", *choices, cwd=tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    before, after = (metrics["evaluate"][policy]["validation"] for policy in ("sft", "ppo"))
    assert after["gold_reward"] - before["gold_reward"] >= 0.3
    assert before["gold_reward_ci"][1] < after["gold_reward_ci"][0], "not by chance"
    assert before["harmful_rate"] >= 0.25, "there is something to unlearn"
    assert after["harmful_rate"] <= before["harmful_rate"] / 2
    assert after["malformed_rate"] <= 0.1
    assert 0.0 < after["kl"] < 10.0
