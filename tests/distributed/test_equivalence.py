"""Two processes train what one process trains: the same weights to 1e-5, the same figures, at the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from runs import FIRST_UPDATE, SMALL, assert_alike, from_stages_of, history, train, train_alone

EXACT = ("kl.estimator=exact", "kl.apply_to=loss")
LORA = ("peft=lora", "peft.rank=4", "ppo.critic=separate")
SHARED = ("model.share_backbone=true",)


class Training(NamedTuple):
    """One thing to train.

    Attributes:
        start: the training from whose other stages PPO starts; None: the whole pipeline, to the first update of PPO.
        alone: overrides of the run in one process only.
    """

    start: str | None
    overrides: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


TRAININGS = {
    "pipeline": Training(None),
    "iterations": Training("pipeline", ("ppo.iterations=3",)),
    "another critic": Training("pipeline", ("ppo.critic=reward_model", *EXACT, "ppo.entropy_coef=0.01")),
    "limits": Training(
        "pipeline",
        (
            *("ppo.critic=separate", "ppo.critic_warmup=1", "ppo.target_kl=0.002", "ppo.iterations=3"),
            *("kl=adaptive", "advantage.whiten_rewards=true", "model.gradient_checkpointing=true"),
        ),
    ),
    # What frozen blocks give travels with the rollouts: each process goes on from what another one computed.
    "frozen blocks": Training(
        "pipeline", ("peft=top_layers", "peft.layers=1", "ppo.iterations=2"), alone=("peft.reuse_trunk=false",)
    ),
    "frozen blocks, exact KL": Training(
        "pipeline", ("peft=top_layers", "peft.layers=1", *EXACT), alone=("peft.reuse_trunk=false",)
    ),
    "virtual tokens": Training("pipeline", ("peft=prompt_tuning", "peft.virtual_tokens=4", "ppo.iterations=2")),
    # The same as one process makes with all models on one backbone.
    "LoRA": Training(None, LORA, alone=SHARED),
    # Reference and critic switch adapters while the policy's own forward pass waits for its backward.
    "LoRA, recomputed": Training("LoRA", (*LORA, *EXACT, "model.gradient_checkpointing=true"), alone=SHARED),
}

LOGGED = {
    ("frozen blocks", "fsdp"): "trainer=fsdp runs whole models only",
    ("LoRA", "ddp"): "on the policy's frozen weights",
    ("LoRA", "fsdp"): "a model of its own (trainer=fsdp puts weights together for a whole policy only)",
}


@pytest.fixture(scope="session")
def trained(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs of the trainings above, each once: in one process, or in two with that strategy."""

    @cache
    def run(name: str, strategy: str | None = None) -> Path:
        if (name, strategy) == ("pipeline", None):
            return alone
        start, overrides, alone_only = TRAININGS[name]
        base = (*SMALL, *FIRST_UPDATE) if start is None else from_stages_of(run(start))
        world = tmp_path_factory.mktemp("trained")
        if strategy is None:
            return train_alone(world / "run", *base, *overrides, *alone_only, cwd=world)
        two = (f"trainer={strategy}", "trainer.accelerator=cpu")
        return train(world / "run", *base, *overrides, *two, cwd=world)

    return run


PAIRS = [
    ("pipeline", "fsdp"),
    ("iterations", "ddp"),
    ("another critic", "fsdp"),
    ("limits", "ddp"),
    ("frozen blocks", "ddp"),
    ("frozen blocks", "fsdp"),
    ("frozen blocks, exact KL", "ddp"),
    ("virtual tokens", "ddp"),
    ("virtual tokens", "fsdp"),
    ("LoRA", "ddp"),
    ("LoRA", "fsdp"),
    ("LoRA, recomputed", "ddp"),
    ("LoRA, recomputed", "fsdp"),
]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("pipeline", "ddp"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS)],
)
def test_two_processes_end_where_one_does(name: str, strategy: str, trained: Callable[..., Path]) -> None:
    one, two = trained(name), trained(name, strategy)
    assert_alike(one, two)
    before, after = history(one), history(two)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)
    assert LOGGED.get((name, strategy), "") in (two / "run.log").read_text()


def test_only_the_first_process_writes(trained: Callable[..., Path]) -> None:
    one, two = trained("pipeline"), trained("pipeline", "ddp")
    assert {path.relative_to(two) for path in two.rglob("*")} == {path.relative_to(one) for path in one.rglob("*")}


def test_adapters_are_left_as_such(trained: Callable[..., Path]) -> None:
    for strategy in ("ddp", "fsdp"):
        for stage in ("sft", "reward_model", "ppo"):
            assert not (trained("LoRA", strategy) / stage / "model.safetensors").exists()
    assert (trained("virtual tokens", "fsdp") / "ppo" / "adapter_config.json").is_file()
