"""Stage `comparisons`: training data of the reward model.

Recorded data brings its comparisons; they are read, checked, split and counted. In the courtesy world there are none
yet: the policy answers each prompt K times and annotators rank what it said, malformed responses included, because a
reward model that has only seen good form scores bad form at random.
"""

from __future__ import annotations

import logging
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Ranking
from rlhf_lightning.sections import Count, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import BY_EVERY_STAGE, LENGTHS, MemoryRelief, Stage, StageSection, register

if TYPE_CHECKING:
    from rlhf_lightning.data.comparisons import Comparisons
    from rlhf_lightning.stages.run_settings import RunSettings

logger = logging.getLogger(__name__)


class ComparisonsSettings(StageSection):
    """Gathering the comparisons that the reward model learns from."""

    policy_from: StageRef
    prompts: Count
    responses: Annotated[int, Field(ge=2)]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


@register
class ComparisonsStage(Stage):
    """Comparisons: a policy in, rankings of its responses out; or recorded comparisons, split."""

    name = "comparisons"
    Settings = ComparisonsSettings
    reads = ("seed", "data.pairing", "rollout", *LENGTHS, "data.kind", "data.annotator")
    not_read = frozenset({"rollout.batch_size"})
    relief = MemoryRelief(("rollout.chunk_size",), ("rollout.max_new_tokens", "data.max_prompt_length"))

    def copies_records(self, settings: RunSettings, name: str) -> bool:
        return not isinstance(settings.data, CourtesyData)

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        if not self.copies_records(settings, name):
            return frozenset()
        return frozenset({name, "seed", "rollout", *LENGTHS, *BY_EVERY_STAGE})

    def run(self, context: StageContext) -> StageResult:
        """Gather comparisons and leave `train.jsonl` and `held_out.jsonl`."""
        from rlhf_lightning.data.comparisons import trivial_baselines

        context.seed_everything()
        comparisons = context.inputs.data.comparisons() or _ranked_samples(context)
        comparisons.save(context.directory)
        pairs, held_out = comparisons.preferences(context.settings.data.pairing)
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
    from rlhf_lightning.data.comparisons import Comparisons
    from rlhf_lightning.models.loading import load_policy
    from rlhf_lightning.rollouts.sampler import PromptStream, Sampler
    from rlhf_lightning.stages.monitoring import track
    from rlhf_lightning.worlds.courtesy import Annotator

    data, settings = context.settings.data, context.section(ComparisonsSettings)
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
    groups = sampler.sample_groups(
        chosen,
        settings.responses,
        first_draw=0,
        chunk_size=context.settings.rollout.chunk_size,
        track=lambda starts: track(starts, "Sampling responses to rank"),
    )
    annotator, rng = Annotator(data.annotator), Random(context.seed)
    rankings = []
    for group in groups:
        texts = tuple(completion.text for completion in group)
        ranks = annotator.rank(group[0].prompt.last_turn, texts, rng, [completion.finished for completion in group])
        rankings.append(Ranking(group[0].prompt, texts, ranks))
    return Comparisons.split(rankings, settings.held_out_fraction)
