"""Adapters trained by two processes: the same first update as one process makes with all models on one backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import FIRST_UPDATE, SMALL, assert_alike, history, train, train_alone

TWO = "trainer.accelerator=cpu"
LORA = ("peft=lora", "peft.rank=4", "ppo.critic=separate")
SHARED = "model.share_backbone=true"

LOGGED = {
    "ddp": "on the policy's frozen weights",
    "fsdp": "a model of its own (trainer=fsdp puts weights together for a whole policy only)",
}
"""What is said of the reward model."""


@pytest.fixture(scope="module")
def on_one_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline in one process; PPO ends after its first optimizer step."""
    world = tmp_path_factory.mktemp("on_one_backbone")
    return train_alone(world / "run", *SMALL, *FIRST_UPDATE, *LORA, SHARED, cwd=world)


def assert_same_history(one: Path, other: Path) -> None:
    before, after = history(one), history(other)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LOGGED)
def test_the_whole_pipeline(strategy: str, on_one_backbone: Path, tmp_path: Path) -> None:
    two = train(tmp_path / "two", *SMALL, *FIRST_UPDATE, *LORA, f"trainer={strategy}", TWO, cwd=tmp_path)
    assert_alike(on_one_backbone, two)
    assert_same_history(on_one_backbone, two)
    assert LOGGED[strategy] in (two / "run.log").read_text()
    for stage in ("sft", "reward_model", "ppo"):
        assert not (two / stage / "model.safetensors").exists()


@pytest.fixture(scope="module")
def recomputing(on_one_backbone: Path) -> tuple[str, ...]:
    """PPO whose reference and critic switch adapters while the policy's own forward pass waits for its backward."""
    return (
        *("debug=tiny", "logger=none", "pipeline=ppo", "ppo.learning_rate=1e-3", "ppo.micro_batch_size=2", *LORA),
        *(f"ppo.policy_from={on_one_backbone / 'sft'}", f"ppo.reward_from={on_one_backbone / 'reward_model'}"),
        *("kl.estimator=exact", "kl.apply_to=loss", "model.gradient_checkpointing=true"),
    )


@pytest.fixture(scope="module")
def recomputed_alone(recomputing: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("recomputed_alone")
    return train_alone(world / "run", *recomputing, SHARED, cwd=world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LOGGED)
def test_recomputed_activations_and_the_exact_kl(
    strategy: str, recomputing: tuple[str, ...], recomputed_alone: Path, tmp_path: Path
) -> None:
    two = train(tmp_path / "two", *recomputing, f"trainer={strategy}", TWO, cwd=tmp_path)
    assert_alike(recomputed_alone, two)
    assert_same_history(recomputed_alone, two)
