"""Settings of all supervised trainings."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from rlhf_lightning.sections import NO_EFFECT, Count, OpenFraction, Positive
from rlhf_lightning.stages.declaration import StageSection

READ_BY_TRAINING = ("seed", "peft", "optimizer", "callbacks.extra")

TRAINING_RELIEF = ("peft=lora", "data.max_prompt_length", "data.max_response_length", "trainer.precision")
"""Keys that lower the memory of any supervised training, and change its result."""


class SupervisedLoop(StageSection):
    """One supervised training loop: epochs over shuffled batches, linear warm-up, linear decay to zero."""

    epochs: Count
    max_steps: Count | None
    batch_size: Count
    micro_batch_size: Annotated[Count, NO_EFFECT]
    learning_rate: Positive
    warmup_fraction: OpenFraction
    max_grad_norm: Positive

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> SupervisedLoop:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)
