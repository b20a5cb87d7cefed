"""Stage `ai_feedback`: a policy's responses compared by a judge under the constitution.

It leaves `labels.jsonl` (every response, every opinion), and `train.jsonl` and `held_out.jsonl`: comparisons with soft
labels, as a reward model takes them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.constitutions.identity import judge_hash
from rlhf_lightning.errors import ArtifactError, DataError
from rlhf_lightning.records import Preference, Prompt
from rlhf_lightning.sections import NO_EFFECT, Count, PromptKinds, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import JUDGE, LENGTHS, OF_CRITIQUES, MemoryRelief, Stage, StageSection, register

if TYPE_CHECKING:
    from rlhf_lightning.feedback.labeling import Label, Labeler
    from rlhf_lightning.rollouts.sampler import SampledResponse
    from rlhf_lightning.stages.restore import ResumableJsonl

logger = logging.getLogger(__name__)

LABELS = "labels.jsonl"

TIE = 0.5


class AiFeedbackSettings(StageSection):
    """Comparisons by a judge under the constitution."""

    policy_from: StageRef
    calibration_from: StageRef | None
    on_failed_calibration: Literal["refuse", "warn"]
    prompts: Count
    responses: Annotated[int, Field(ge=2)]
    kinds: PromptKinds
    batch_size: Annotated[Count, NO_EFFECT]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


@register
class AiFeedbackStage(Stage):
    """AI feedback: a policy, a judge and a constitution in, comparisons with soft labels out."""

    name = "ai_feedback"
    Settings = AiFeedbackSettings
    reads = ("seed", *JUDGE, "rollout", *LENGTHS, "data.kind")
    not_read = OF_CRITIQUES | {"rollout.batch_size"}
    relief = MemoryRelief(
        (".batch_size", "rollout.chunk_size", "judge.batch_size"),
        ("rollout.max_new_tokens", "data.max_prompt_length", "judge=openai"),
    )

    def run(self, context: StageContext) -> StageResult:
        """Sample responses, have the judge compare them, and write comparisons; resumes an interrupted stage."""
        from rlhf_lightning.data.comparisons import Comparisons, trivial_baselines
        from rlhf_lightning.stages.judging import judge_usage, open_labeler
        from rlhf_lightning.stages.restore import ResumableJsonl

        constitution = context.settings.constitution
        context.seed_everything()
        require_calibration(context)
        labeler = open_labeler(context) if constitution.principles else None
        journal = ResumableJsonl(context.directory, LABELS, context.key)
        _label(context, labeler, journal)
        preferences = [pair for row in journal.rows for pair in preferences_of(row)]
        if not preferences:
            raise DataError(
                f"The judge gave no label that tells two responses apart: {_reasons(journal.rows)}.",
                where="ai_feedback, judge",
                fix="look at the judge_calibration report; lower judge.min_option_mass or judge.abstain_margin, or "
                "choose another judge",
            )
        comparisons = Comparisons.split(preferences, context.section(AiFeedbackSettings).held_out_fraction)
        comparisons.save(context.directory)
        journal.finish()
        labels = [pair for row in journal.rows for pair in row["pairs"]]
        given = [pair["probability"] for pair in labels if pair["probability"] is not None]
        metrics = {
            "constitution": constitution.name,
            "constitution_hash": judge_hash(constitution),
            "judge": labeler.judge.name if labeler is not None else None,
            "comparisons": len(comparisons.train),
            "held_out": len(comparisons.held_out),
            "labels": len(labels),
            "abstentions": dict(Counter(pair["reason"] for pair in labels if pair["reason"] is not None)),
            "confidence": sum(max(one, 1.0 - one) for one in given) / len(given),
            "option_mass": sum(pair["mass"] for pair in labels) / len(labels),
            "baselines": trivial_baselines(comparisons.preferences("all")[1]),  # how far length predicts the labels
            "questions": sum(row["questions"] for row in journal.rows),
            "input_tokens": sum(row["tokens"][0] for row in journal.rows),
            "output_tokens": sum(row["tokens"][1] for row in journal.rows),
            **(judge_usage(labeler) if labeler is not None else {}),
        }
        logger.info("AI feedback: %d labels, %d comparisons for training.", len(labels), len(comparisons.train))
        return StageResult(metrics, objective=float(len(comparisons.train)))


def require_calibration(context: StageContext) -> None:
    """Refuses to label with a judge that is no better than a trivial baseline.

    Raises:
        ArtifactError: it is no better, its calibration used other judge settings or another constitution, or there
            is no calibration.
    """
    from rlhf_lightning.stages.judging import CALIBRATION, judge_terms

    settings, constitution = context.section(AiFeedbackSettings), context.settings.constitution
    name = settings.calibration_from
    if name is None:
        logger.warning("How good the judge is was not measured (ai_feedback.calibration_from=null).")
        return
    directory = context.inputs.records_of(name)
    figures = _calibration_in(directory, name)
    if figures["constitution_hash"] != judge_hash(constitution):
        raise ArtifactError(
            f"The judge was calibrated under another constitution ({figures['constitution']}).",
            where=f"ai_feedback.calibration_from={name}",
            fix="run stage judge_calibration under this one, or set ai_feedback.calibration_from=null",
        )
    if figures["judge_terms"] != judge_terms(context.settings.judge):
        raise ArtifactError(
            "The judge that was calibrated was asked in another way, or was another one.",
            where=f"ai_feedback.calibration_from={name}",
            fix="run stage judge_calibration with this judge, or set ai_feedback.calibration_from=null",
        )
    if figures["worth_training_on"] is not False:
        return
    verdict = figures["verdict"]
    if settings.on_failed_calibration == "refuse":
        raise ArtifactError(
            f"The judge's labels are no better than a trivial baseline's: {verdict}",
            where=str(directory / CALIBRATION),
            fix="choose a better judge or other questions; or train on such labels all the same: "
            "ai_feedback.on_failed_calibration=warn",
        )
    logger.warning("The judge's labels are no better than a trivial baseline's: %s", verdict)


def preferences_of(row: Mapping[str, Any]) -> Iterator[Preference]:
    """The comparisons of a row of `labels.jsonl`: its labeled pairs, the likelier response as the chosen one."""
    from rlhf_lightning.data.formats import parse_prompt

    prompt = parse_prompt(row, LABELS)
    for pair in row["pairs"]:
        first, second = row["responses"][pair["first"]], row["responses"][pair["second"]]
        probability = pair["probability"]
        if probability is None or first == second:
            continue
        if probability < TIE:
            first, second, probability = second, first, 1.0 - probability
        yield Preference(prompt, first, second, probability=probability)


def _calibration_in(directory: Path, name: str) -> dict[str, Any]:
    from rlhf_lightning.stages.judging import CALIBRATION

    try:
        figures: dict[str, Any] = json.loads((directory / CALIBRATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "There is no calibration there.",
            where=f"ai_feedback.calibration_from={name}",
            fix="name the stage judge_calibration or a directory that it left, or null to label without one",
        ) from error
    return figures


def _label(context: StageContext, labeler: Labeler | None, journal: ResumableJsonl) -> None:
    """Fills the journal: one row per prompt."""
    from rlhf_lightning.models.loading import load_policy
    from rlhf_lightning.rollouts.sampler import Sampler
    from rlhf_lightning.stages.monitoring import track

    settings, rollout = context.section(AiFeedbackSettings), context.settings.rollout
    source = context.inputs.model(settings.policy_from)
    encoder = context.inputs.encoder(source)
    asked = _prompts(context, settings.prompts)
    encoded, _ = encoder.prompts([prompt for prompt, _ in asked])
    sampler = Sampler(
        load_policy(source, context.device),
        encoder.tokenizer,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        seed=context.seed,
    )
    kinds = dict(asked)
    starts = range(len(journal.rows), len(encoded), settings.batch_size)
    for start in track(starts, "Comparing responses"):
        batch = encoded[start : start + settings.batch_size]
        first = start * settings.responses
        groups = sampler.sample_groups(batch, settings.responses, first_draw=first, chunk_size=rollout.chunk_size)
        journal.add(_rows(groups, [kinds[prompt.prompt] for prompt in batch], start, labeler))


def _prompts(context: StageContext, count: int) -> list[tuple[Prompt, str | None]]:
    from rlhf_lightning.data.encoding import EncodedPrompt
    from rlhf_lightning.rollouts.sampler import PromptStream
    from rlhf_lightning.stages.prompting import of_kinds

    data, settings = context.inputs.data, context.section(AiFeedbackSettings)
    pool = of_kinds(data.prompts(), data, settings.kinds, context.settings.constitution.principles, "ai_feedback.kinds")
    kinds = dict(pool)
    stream = PromptStream([EncodedPrompt(prompt, ()) for prompt, _ in pool], context.seed)
    return [(taken.prompt, kinds[taken.prompt]) for taken in stream.take(count)]


def _rows(
    groups: Sequence[Sequence[SampledResponse]], kinds: Sequence[str | None], start: int, labeler: Labeler | None
) -> list[dict[str, Any]]:
    """Rows of `labels.jsonl`: of each prompt its responses, and the label of every two of them."""
    from rlhf_lightning.data.formats import to_fields
    from rlhf_lightning.feedback.labeling import Label, Pair

    width = len(list(combinations(groups[0], 2)))
    pairs = [
        Pair((start + row) * width + place, one.prompt, one.text, other.text, kind)
        for row, (group, kind) in enumerate(zip(groups, kinds, strict=True))
        for place, (one, other) in enumerate(combinations(group, 2))
    ]
    before = (labeler.asked, *labeler.tokens) if labeler is not None else (0, 0, 0)
    # Without a principle all responses are equally good.
    labels = labeler.labels(pairs) if labeler is not None else [Label(TIE, None, TIE, ()) for _ in pairs]
    after = (labeler.asked, *labeler.tokens) if labeler is not None else (0, 0, 0)
    questions, read, written = (new - old for new, old in zip(after, before, strict=True))
    rows = []
    for row, group in enumerate(groups):
        own = zip(combinations(range(len(group)), 2), labels[row * width : (row + 1) * width], strict=True)
        first_of_batch = row == 0  # the counts of the whole batch are in its first row
        rows.append(
            {
                **to_fields(group[0].prompt),
                "kind": kinds[row],
                "responses": [done.text for done in group],
                "finished": [done.finished for done in group],
                "pairs": [{"first": first, "second": second, **_spelled(label)} for (first, second), label in own],
                "questions": questions if first_of_batch else 0,
                "tokens": [read, written] if first_of_batch else [0, 0],
            }
        )
    return rows


def _spelled(label: Label) -> dict[str, Any]:
    return {
        "probability": label.probability,
        "reason": label.reason,
        "raw": label.raw,
        "mass": label.mass,
        "opinions": [asdict(opinion) for opinion in label.opinions],
    }


def _reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    counted = Counter(pair["reason"] or "identical responses" for row in rows for pair in row["pairs"])
    return ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
