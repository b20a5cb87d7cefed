"""The pipeline aligns: asserted on the figures that runs leave, at sizes of less than half a minute each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_runs import finished_metrics, placed, train

from rlhf_lightning.stages.run_directory import RunDirectory

SIZES = (
    "logger=none",
    "callbacks.plots=false",
    "trainer.threads=1",  # the figures do not depend on the number of cores then
    "data.annotator.flip_rate=0",
)
REWARD_MODEL = (
    "pipeline.stages=[comparisons,reward_model]",
    *("comparisons.policy_from=base", "comparisons.prompts=500", "comparisons.responses=3"),
    *("reward_model.backbone_from=base", "reward_model.learning_rate=2e-3"),
)
PPO = (
    *("pipeline.stages=[ppo,evaluate]", "ppo.policy_from=base", "evaluate.reference_from=base"),
    *("rollout.batch_size=64", "ppo.minibatches=2", "ppo.iterations=7", "ppo.learning_rate=1e-3"),
    *("evaluate.policies=[base,ppo]", "evaluate.splits=[validation]", "evaluate.prompts=100"),
)


@contextmanager
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reward_model_run(once: Callable[[str, Callable[[Path], None]], Path]) -> RunDirectory:
    """Comparisons and reward model: what the policy is aligned with."""

    def build(directory: Path) -> None:
        with threads_put_back():
            train(*SIZES, *REWARD_MODEL, *placed(directory))

    return RunDirectory.open(once("reward_model_run", build) / "run")


def test_a_reward_model_learns_more_than_length(reward_model_run: RunDirectory) -> None:
    reward_model = finished_metrics(reward_model_run)["stages"]["reward_model"]
    assert reward_model["accuracy"] > max(reward_model["longer_accuracy"], reward_model["shorter_accuracy"])
    assert reward_model["lift"] > 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_ppo_aligns_a_badly_behaved_model(seed: int, reward_model_run: RunDirectory, tmp_path: Path) -> None:
    reward_model = reward_model_run.stage_dir("reward_model")
    scored = [f"{key}.reward_from={reward_model}" for key in ("ppo", "evaluate")]
    with threads_put_back():
        run = train(*SIZES, *PPO, *scored, f"seed={seed}", *placed(tmp_path))
    before, after = (policy["validation"] for policy in finished_metrics(run)["evaluate"].values())

    assert after["gold_reward"] - before["gold_reward"] >= 0.3
    assert before["gold_reward_ci"][1] < after["gold_reward_ci"][0], "not by chance"
    assert before["harmful_rate"] >= 0.2, "there is something to unlearn"
    assert after["harmful_rate"] <= before["harmful_rate"] / 2
    assert after["rude_rate"] <= before["rude_rate"] / 2
    assert after["malformed_rate"] <= 0.1
    assert after["proxy_reward"] > before["proxy_reward"]
    assert 0.0 < after["kl"] < 10.0
