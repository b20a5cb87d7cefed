"""Stage `critique_revision`: red-team prompts in; chains of responses, critiques and revisions out.

It leaves `chains.jsonl` (every text), `demonstrations.jsonl` (revisions and helpful samples, for supervised
fine-tuning), and `train.jsonl` and `held_out.jsonl` (last revision over first response: comparisons without a judge).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.constitutions.identity import critique_hash
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration, Prompt
from rlhf_lightning.sections import NO_EFFECT, Count, FileRef, Positive, PromptKinds, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import MemoryRelief, Stage, StageSection, register

if TYPE_CHECKING:
    from rlhf_lightning.feedback.critique_revision import Chain, ChainWriter
    from rlhf_lightning.feedback.local_models import SamplingGenerator
    from rlhf_lightning.stages.restore import ResumableJsonl

logger = logging.getLogger(__name__)

CHAINS = "chains.jsonl"
HELPFUL = "helpful.jsonl"

Asked = tuple[Prompt, str | None]
"""A prompt and its kind."""


class CritiqueRevisionSettings(StageSection):
    """Responses to red-team prompts, critiqued and revised by the principles of the constitution."""

    policy_from: StageRef
    reviser_from: StageRef
    prompts: Count
    kinds: PromptKinds
    prompts_from: FileRef | None
    last_turn_only: bool
    helpful_kinds: PromptKinds
    helpful_prompts_from: FileRef | None
    fewshots: Literal["auto", "always", "never"]
    batch_size: Annotated[Count, NO_EFFECT]
    temperature: Positive
    max_new_tokens: Count
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


@register
class CritiqueRevisionStage(Stage):
    """Critiques and revisions: red-team prompts and a constitution in, demonstrations and comparisons out."""

    name = "critique_revision"
    Settings = CritiqueRevisionSettings
    reads = ("seed", "constitution", "data.kind")
    relief = MemoryRelief((".batch_size",), (".max_new_tokens", "data.max_prompt_length"))

    def run(self, context: StageContext) -> StageResult:
        """Write the chains and the helpful samples; resumes an interrupted stage."""
        from rlhf_lightning.data.comparisons import Comparisons
        from rlhf_lightning.data.sources import write_demonstrations
        from rlhf_lightning.feedback.critique_revision import ChainWriter, revision_over_response, to_imitate
        from rlhf_lightning.stages.prompting import phrasing_for
        from rlhf_lightning.stages.restore import ResumableJsonl

        settings, constitution = context.section(CritiqueRevisionSettings), context.settings.constitution
        context.seed_everything()
        speakers = _open_generators(context)
        writer = ChainWriter(
            speakers.policy,
            speakers.reviser,
            constitution,
            phrasing_for(context.settings, "auto", settings.fewshots, speakers.reviser_is_plain),
            context.seed,
        )
        written, sampled = (ResumableJsonl(context.directory, name, context.key) for name in (CHAINS, HELPFUL))
        chains = _chains(context, writer, written)
        revised = [demonstration for chain in chains for demonstration in to_imitate(chain, constitution.train_on)]
        helpful = _helpful_samples(context, speakers.policy, round(constitution.mix_helpful * len(revised)), sampled)
        if not revised and not helpful:
            raise DataError(
                "No revision and no helpful sample ended itself: there is nothing to train on.",
                where="critique_revision",
                fix="raise critique_revision.max_new_tokens, or take a model that ends its responses",
            )
        write_demonstrations((*revised, *helpful), context.directory)
        pairs = [pair for chain in chains if (pair := revision_over_response(chain)) is not None]
        Comparisons.split(pairs, settings.held_out_fraction).save(context.directory)
        for journal in (written, sampled):  # only at the end: a finished journal would be started anew
            journal.finish()
        return StageResult(
            {
                "constitution": constitution.name,
                "constitution_hash": critique_hash(constitution),
                **_counts(chains),
                "revisions_to_imitate": len(revised),
                "helpful_samples": len(helpful),
                "pairs": len(pairs),
                "truncated": speakers.policy.truncated + speakers.reviser.truncated,
            },
            objective=float(len(revised)),
        )


@dataclass(frozen=True, slots=True)
class Generators:
    """The model that responses, and the one that criticizes and revises."""

    policy: SamplingGenerator
    reviser: SamplingGenerator
    reviser_is_plain: bool


def _open_generators(context: StageContext) -> Generators:
    from rlhf_lightning.feedback.local_models import SamplingGenerator
    from rlhf_lightning.models.loading import load_policy
    from rlhf_lightning.stages.prompting import open_encoder

    settings = context.section(CritiqueRevisionSettings)

    def opened(name: str) -> tuple[SamplingGenerator, bool]:
        source = context.inputs.model(name)
        encoder, is_plain = open_encoder(context, source)
        speaker = SamplingGenerator(
            load_policy(source, context.device),
            encoder,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=context.seed,
            is_plain=is_plain,
        )
        return speaker, is_plain

    policy, is_plain = opened(settings.policy_from)
    if settings.reviser_from == settings.policy_from:
        return Generators(policy, policy, is_plain)
    return Generators(policy, *opened(settings.reviser_from))


def _chains(context: StageContext, writer: ChainWriter, journal: ResumableJsonl) -> list[Chain]:
    from rlhf_lightning.feedback.critique_revision import Chain
    from rlhf_lightning.stages.monitoring import track
    from rlhf_lightning.stages.prompting import of_kinds, prompts_to_use

    settings = context.section(CritiqueRevisionSettings)
    data = context.inputs.data
    pool = of_kinds(
        prompts_to_use(data, settings.prompts_from, last_turn_only=settings.last_turn_only),
        data,
        settings.kinds,
        context.settings.constitution.principles,
        "critique_revision.kinds",
    )
    asked = _in_turn(pool, settings.prompts, context.seed)
    origin = {
        "policy": settings.policy_from,
        "reviser": settings.reviser_from,
        "constitution": critique_hash(context.settings.constitution),
        "seed": context.seed,
    }
    starts = range(len(journal.rows), len(asked), settings.batch_size)
    for start in track(starts, "Writing chains of critiques and revisions"):
        batch = asked[start : start + settings.batch_size]
        numbers = range(start, start + len(batch))
        chains = writer.write(numbers, [prompt for prompt, _ in batch], [kind for _, kind in batch])
        journal.add([{**chain.to_row(), **origin} for chain in chains])
    return [Chain.from_row(row) for row in journal.rows]


def _helpful_samples(
    context: StageContext, policy: SamplingGenerator, wanted: int, journal: ResumableJsonl
) -> list[Demonstration]:
    """The policy's own responses to helpful prompts, mixed in so that fine-tuning does not see revisions only."""
    from rlhf_lightning.data.formats import parse_demonstration, to_fields
    from rlhf_lightning.stages.monitoring import track
    from rlhf_lightning.stages.prompting import of_kinds, prompts_to_use

    settings = context.section(CritiqueRevisionSettings)
    if wanted:
        data = context.inputs.data
        pool = of_kinds(
            prompts_to_use(data, settings.helpful_prompts_from, last_turn_only=settings.last_turn_only),
            data,
            settings.helpful_kinds,
            (),
            "critique_revision.helpful_kinds",
        )
        if settings.helpful_prompts_from is None and any(kind is None for _, kind in pool):
            logger.warning(
                "Nobody knows which of the data's prompts are helpful ones: the helpful samples answer red-team "
                "prompts too, and undo in part what the revisions teach. Name a file of others with "
                "critique_revision.helpful_prompts_from."
            )
        asked = _in_turn(pool, wanted, context.seed + 1)
        for start in track(range(len(journal.rows), wanted, settings.batch_size), "Sampling helpful responses"):
            batch = [prompt for prompt, _ in asked[start : start + settings.batch_size]]
            # Draws below 0 are not used by any chain.
            draws = [-1 - number for number in range(start, start + len(batch))]
            said = policy.generate([prompt.text for prompt in batch], draws)
            journal.add(
                [
                    {**to_fields(Demonstration(prompt, turn.text)), "finished": turn.finished}
                    for prompt, turn in zip(batch, said, strict=True)
                ]
            )
    rows = [row for row in journal.rows if row["finished"] and row["response"].strip()]
    return [parse_demonstration(row, HELPFUL) for row in rows]


def _in_turn(pool: Sequence[Asked], count: int, seed: int) -> list[Asked]:
    """`count` items of the shuffled pool, each used once before any is repeated."""
    from rlhf_lightning.data.encoding import EncodedPrompt
    from rlhf_lightning.rollouts.sampler import PromptStream

    kinds = dict(pool)
    stream = PromptStream([EncodedPrompt(prompt, ()) for prompt, _ in pool], seed)
    return [(taken.prompt, kinds[taken.prompt]) for taken in stream.take(count)]


def _counts(chains: Sequence[Chain]) -> dict[str, Any]:
    steps = [step for chain in chains for step in chain.steps]
    said = [[chain.response, *(step.revision for step in chain.steps)] for chain in chains]
    changed = sum(before != after for texts in said for before, after in pairwise(texts))
    return {
        "chains": len(chains),
        "revisions": len(steps),
        "changed": changed / len(steps) if steps else 0.0,
        "unfinished": sum(not step.finished for step in steps),
    }
