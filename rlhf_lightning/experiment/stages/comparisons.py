"""Stage `comparisons`: training data of the reward model.

Recorded data brings its comparisons; they are read, checked, split and counted. In the courtesy world there are none
yet: the policy answers each prompt K times and annotators rank what it said, malformed replies included, because a
reward model that has only seen good form scores bad form at random.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from rlhf_lightning.data.comparisons import Comparisons, trivial_baselines
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.experiment.progress import track
from rlhf_lightning.experiment.stage import StageContext, StageResult
from rlhf_lightning.models.loading import load_policy
from rlhf_lightning.records import Ranking
from rlhf_lightning.rollouts.prompts import PromptStream
from rlhf_lightning.rollouts.sampler import Completion, Sampler
from rlhf_lightning.settings.data import AnnotatorSettings, CourtesyData
from rlhf_lightning.worlds.courtesy import Annotator

logger = logging.getLogger(__name__)


def run_comparisons(context: StageContext) -> StageResult:
    """Gather comparisons and leave `train.jsonl` and `held_out.jsonl`."""
    context.seed_everything()
    comparisons = context.inputs.data.comparisons() or _ranked_samples(context)
    comparisons.save(context.directory)
    pairs, held_out = comparisons.preferences(context.settings.reward_model.pairing)
    metrics: dict[str, Any] = {
        "comparisons": len(comparisons.train),
        "held_out": len(comparisons.held_out),
        "pairs": len(pairs),
        "held_out_pairs": len(held_out),
        "baselines": trivial_baselines(held_out),
    }
    logger.info(
        "Comparisons: %d for training (%d pairs), %d held out.", metrics["comparisons"], len(pairs), len(held_out)
    )
    return StageResult(metrics, objective=float(len(pairs)))


def _ranked_samples(context: StageContext) -> Comparisons:
    """Annotators of the courtesy world rank K samples per prompt of the policy.

    Raises:
        DataError: the data has no comparisons and no annotators.
    """
    data, settings = context.settings.data, context.settings.comparisons
    if not isinstance(data, CourtesyData):
        raise DataError(
            "The data holds no comparisons, and only the courtesy world has annotators who would make some.",
            where=f"data.kind={data.kind}",
            fix="give preferences or rankings (data.preferences=FILE), or run pipeline=sft",
        )
    source = context.inputs.model(settings.policy_from)
    encoder = context.inputs.encoder(source)
    prompts, _ = encoder.prompts(context.inputs.data.prompts())
    chosen = PromptStream(prompts, context.seed).take(settings.prompts)
    sampler = Sampler(
        load_policy(source, context.device),
        encoder.tokenizer,
        temperature=context.settings.rollout.temperature,
        max_new_tokens=context.settings.rollout.max_new_tokens,
        seed=context.seed,
    )
    rankings = _rank(
        sampler, chosen, settings.replies, context.settings.rollout.chunk_size, data.annotator, context.seed
    )
    return Comparisons.split(rankings, settings.held_out_fraction)


@torch.no_grad()
def _rank(
    sampler: Sampler,
    prompts: Sequence[EncodedPrompt],
    replies: int,
    chunk_size: int,
    annotators: AnnotatorSettings,
    seed: int,
) -> list[Ranking]:
    annotator = Annotator(annotators)
    rng = Random(seed)
    repeated = [prompt for prompt in prompts for _ in range(replies)]
    draws = range(len(repeated))
    completions: list[Completion] = []
    chunks = range(0, len(repeated), chunk_size)
    for start in track(chunks, "Sampling replies to rank"):
        completions.extend(
            sampler.sample(repeated[start : start + chunk_size], draws[start : start + chunk_size]).completions
        )
    rankings = []
    for start in range(0, len(completions), replies):
        group = completions[start : start + replies]
        texts = tuple(completion.reply for completion in group)
        ranks = annotator.rank(group[0].prompt.last_turn, texts, rng, [completion.finished for completion in group])
        rankings.append(Ranking(group[0].prompt, texts, ranks))
    return rankings
