"""What is trained both in one process and in two."""

from __future__ import annotations

from typing import NamedTuple

EXACT = ("kl.estimator=exact", "kl.apply_to=loss")
LORA = ("peft=lora", "peft.rank=4", "ppo.critic=separate")
SHARED = ("model.share_backbone=true",)
FIRST_UPDATE = ("ppo.iterations=1", "ppo.epochs=1", "ppo.minibatches=1")
"""PPO ends after one optimizer step."""

SEVERAL_UPDATES = ("ppo.iterations=3", "ppo.micro_batch_size=2", "rollout.batch_size=8", "callbacks.keep_last=10")
TO_PPO = ("pipeline.stages=[sft,comparisons,reward_model,ppo]",)


class Training(NamedTuple):
    """One thing to train.

    Attributes:
        start: the training from whose other stages PPO starts; None: the whole pipeline.
        alone: overrides of the run in one process only.
    """

    start: str | None
    overrides: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


TRAININGS = {
    # PPO is interrupted elsewhere, and gone on with.
    "pipeline": Training(None, SEVERAL_UPDATES),
    "limits": Training(
        "pipeline",
        (
            *("ppo.critic=separate", "ppo.critic_warmup=1", "ppo.target_kl=0.002", "ppo.iterations=3"),
            *("kl=adaptive", "advantage.whiten_rewards=true", "model.gradient_checkpointing=true"),
        ),
    ),
    # What frozen blocks give travels with the rollouts: each process goes on from what another one computed.
    "frozen blocks": Training(
        "pipeline", ("peft=top_layers", "peft.layers=1", *EXACT), alone=("peft.reuse_trunk=false",)
    ),
    "virtual tokens": Training(
        "pipeline",
        (*("peft=prompt_tuning", "peft.virtual_tokens=4"), "ppo.critic=reward_model", *EXACT, "ppo.entropy_coef=0.01"),
    ),
    # The same as one process makes with all models on one backbone.
    "LoRA": Training(None, (*FIRST_UPDATE, *LORA, *TO_PPO), alone=SHARED),
    # Reference and critic switch adapters while the policy's own forward pass waits for its backward.
    "LoRA, recomputed": Training("LoRA", (*LORA, *EXACT, "model.gradient_checkpointing=true"), alone=SHARED),
}
