"""Which stage reads which key of a config, and which keys decide nothing.

One table for all who ask: the preflight, which refuses an override that no stage of the pipeline reads; the stage
cache, whose keys hold what a stage reads; and a run that goes on, which may be told anew what decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.settings.run import STAGE_NAMES, RunSettings, StageName

EVERY: frozenset[StageName] = frozenset(STAGE_NAMES)
TRAINING: frozenset[StageName] = frozenset({"sft", "revision_sft", "reward_model", "ppo"})
JUDGED: frozenset[StageName] = frozenset({"judge_calibration", "ai_feedback", "evaluate"})

READERS: dict[str, frozenset[StageName]] = {
    **{stage: frozenset({stage}) for stage in STAGE_NAMES},
    **{section: frozenset({"ppo"}) for section in ("kl", "reference", "advantage", "reward")},
    "constitution": JUDGED | {"critique_revision"},
    **{f"constitution.{key}": frozenset({"critique_revision"}) for key in ("revisions", "critique", "train_on")},
    "constitution.mix_helpful": frozenset({"critique_revision"}),
    "judge": JUDGED,
    "reward_model.pairing": frozenset({"comparisons", "judge_calibration", "reward_model"}),
    **{
        f"evaluate.{key}": frozenset({"reward_model", "evaluate"})
        for key in ("batch_size", "bootstrap_samples", "seed")
    },
    "peft": TRAINING,
    "peft.reuse_trunk": frozenset({"ppo"}),
    **{f"peft.{key}": EVERY for key in ("quantization", "double_quantization")},
    "optimizer": TRAINING,
    "model.share_backbone": frozenset({"ppo"}),
    "rollout": frozenset({"comparisons", "ai_feedback", "ppo", "evaluate"}),
    "rollout.batch_size": frozenset({"ppo"}),
    "rollout.chunk_size": frozenset({"comparisons", "ai_feedback", "ppo"}),
    "rollout.temperature": frozenset({"comparisons", "ai_feedback", "ppo"}),
    "callbacks.extra": TRAINING,
    **{
        f"callbacks.{key}": frozenset({"ppo"})
        for key in ("diary_every", "diary_samples", "gold_monitor", "self_checks")
    },
}
"""The stages that read a section, or one of its keys: of two entries that fit a key, the longer one holds.

What is not listed concerns every run, or (the data and the base model) depends on what else is chosen.
"""

FREE = frozenset(
    {
        *("paths", "logger", "cache", "sweep", "launcher", "name", "notes", "tags", "resume"),
        *(f"callbacks.{key}" for key in ("progress_bar", "self_checks", "save_every", "save_every_steps", "keep_last")),
        *("sft.micro_batch_size", "revision_sft.micro_batch_size"),
        *("reward_model.micro_batch_size", "ppo.micro_batch_size"),
        *("critique_revision.batch_size", "ai_feedback.batch_size", "judge.batch_size"),
        *(f"judge.{key}" for key in ("concurrency", "requests_per_minute", "timeout", "max_retries", "cache")),
        *("judge.api_key_env", "judge.price_per_million_input", "judge.price_per_million_output"),
        *("rollout.chunk_size", "evaluate.batch_size", "model.gradient_checkpointing"),
    }
)
"""Sections and keys that decide neither what a stage learns nor what it leaves."""

WATCHING = frozenset(f"callbacks.{key}" for key in ("extra", "diary_every", "diary_samples", "gold_monitor", "plots"))
"""What is watched and written along the way: a run may go on with other values, but what it leaves is another."""


def readers_of(key: str) -> frozenset[StageName] | None:
    """The stages that read a key or section; None where the table does not say."""
    return next((READERS[place] for place in _places(key) if place in READERS), None)


def judging_stages(settings: RunSettings) -> frozenset[StageName]:
    """The stages of the pipeline that ask the judge."""
    asking = JUDGED if settings.evaluate.satisfaction is not None else JUDGED - {"evaluate"}
    return asking & set(settings.pipeline.stages)


def is_among(key: str, sections: frozenset[str]) -> bool:
    """Whether a key is one of these, or lies in one of them."""
    return any(place in sections for place in _places(key))


def _places(key: str) -> Iterator[str]:
    """A key, and the sections that it lies in, from the inside out."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a plain config under its dotted key; an empty section counts as a value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
