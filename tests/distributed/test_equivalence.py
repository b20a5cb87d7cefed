"""Two processes train what one process trains: the same weights to 1e-5, the same figures, at the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import FIRST_UPDATE, SMALL, assert_alike, history, train, train_alone

TWO = "trainer.accelerator=cpu"


def assert_same_history(one: Path, other: Path) -> None:
    before, after = history(one), history(other)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)


def test_ddp_makes_the_same_first_update(alone: Path, tmp_path: Path) -> None:
    two = train(tmp_path / "two", *SMALL, *FIRST_UPDATE, "trainer=ddp", TWO, cwd=tmp_path)
    # SFT and the reward model are trained to their end, PPO by one step.
    assert_alike(alone, two)
    assert_same_history(alone, two)
    # One writer: what lies in the run directory is what one process leaves there.
    assert {path.relative_to(two) for path in two.rglob("*")} == {path.relative_to(alone) for path in alone.rglob("*")}


@pytest.mark.slow
def test_fsdp_makes_the_same_first_update(alone: Path, tmp_path: Path) -> None:
    two = train(tmp_path / "two", *SMALL, *FIRST_UPDATE, "trainer=fsdp", TWO, cwd=tmp_path)
    assert_alike(alone, two)
    assert_same_history(alone, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "choices"),
    [
        ("ddp", ("ppo.iterations=4",)),
        ("fsdp", ("ppo.critic=reward_model", "kl.estimator=exact", "kl.apply_to=loss", "ppo.entropy_coef=0.01")),
        (
            "ddp",
            (
                *("ppo.critic=separate", "ppo.critic_warmup=1", "ppo.target_kl=0.002", "ppo.iterations=3"),
                *("kl=adaptive", "advantage.whiten_rewards=true", "model.gradient_checkpointing=true"),
            ),
        ),
    ],
    ids=["a run", "another critic, KL in the loss", "limits, adaptive KL"],
)
def test_two_processes_end_where_one_does(
    from_stages: tuple[str, ...], tmp_path: Path, strategy: str, choices: tuple[str, ...]
) -> None:
    one = train_alone(tmp_path / "one", *from_stages, *choices, cwd=tmp_path)
    two = train(tmp_path / "two", *from_stages, *choices, f"trainer={strategy}", TWO, cwd=tmp_path)
    assert_alike(one, two)
    assert_same_history(one, two)
