"""Out of memory, said with the keys that need less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlhf_lightning.errors import MemoryExhaustedError
from rlhf_lightning.experiment.memory.stage_memory import StageMemory
from rlhf_lightning.settings.run import StageName

SAME_RESULT: dict[StageName, tuple[str, ...]] = {
    "sft": ("sft.micro_batch_size",),
    "critique_revision": ("critique_revision.batch_size",),
    "revision_sft": ("revision_sft.micro_batch_size",),
    "comparisons": ("rollout.chunk_size",),
    "judge_calibration": ("judge.batch_size",),
    "ai_feedback": ("ai_feedback.batch_size", "rollout.chunk_size", "judge.batch_size"),
    "reward_model": ("reward_model.micro_batch_size", "evaluate.batch_size"),
    "ppo": ("ppo.micro_batch_size", "rollout.chunk_size", "model.gradient_checkpointing=true"),
    "evaluate": ("evaluate.batch_size",),
}
"""Keys that lower a stage's memory and leave its result alone, so that an interrupted run may go on with them."""

OTHER_RESULT: dict[StageName, tuple[str, ...]] = {
    "sft": ("peft=lora", "data.max_prompt_length", "data.max_reply_length", "trainer.precision"),
    "critique_revision": ("critique_revision.max_new_tokens", "data.max_prompt_length"),
    "revision_sft": ("peft=lora", "data.max_prompt_length", "data.max_reply_length", "trainer.precision"),
    "comparisons": ("rollout.max_new_tokens", "data.max_prompt_length"),
    "judge_calibration": ("judge=openai",),
    "ai_feedback": ("rollout.max_new_tokens", "data.max_prompt_length", "judge=openai"),
    "reward_model": ("peft=lora", "data.max_prompt_length", "data.max_reply_length", "trainer.precision"),
    "ppo": (
        "peft=lora",
        "rollout.max_new_tokens",
        "data.max_prompt_length",
        "ppo.critic=policy_trunk",
        "trainer.precision",
    ),
    "evaluate": ("rollout.max_new_tokens", "data.max_prompt_length"),
}
"""Keys that lower it and change the result."""

SAYINGS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
"""How torch words it where it raises a plain RuntimeError."""


@contextmanager
def memory_explained(memory: StageMemory) -> Iterator[None]:
    """Turns a stage's lack of memory within a `with` block into an error that names the keys which lower it.

    Raises:
        MemoryExhaustedError: in place of torch's, CUDA's and Python's own.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _exhausted(memory, error) from error
    except RuntimeError as error:
        if any(saying in str(error) for saying in SAYINGS):
            raise _exhausted(memory, error) from error
        raise


def _exhausted(memory: StageMemory, error: BaseException) -> MemoryExhaustedError:
    stage = memory.stage
    reason = " ".join(str(error).split())[:200].rstrip(".")
    static = f" Whatever the batches are, it holds {memory.static}." if memory.static is not None else ""
    return MemoryExhaustedError(
        f"Stage {stage} ran out of memory{f': {reason}' if reason else ''}.{static}",
        where=f"stage {stage}",
        fix=f"lower {' or '.join(SAME_RESULT[stage])}, with which the run can go on (resume=...); "
        f"in a new run also {', '.join(OTHER_RESULT[stage])}",
    )
