"""Stage `judge_calibration`: agreement of the judge, under this constitution, with human labels.

It leaves `calibration.json` (figures), `calibration.md`, `judged.jsonl` (every pair) and, with `callbacks.plots`,
`reliability.png`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field
from rich.console import Console

from rlhf_lightning.constitutions.identity import judge_hash
from rlhf_lightning.constitutions.settings import ConstitutionSettings
from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import DataError
from rlhf_lightning.sections import FileRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import JUDGE, OF_CRITIQUES, MemoryRelief, Stage, StageSection, register

if TYPE_CHECKING:
    from rlhf_lightning.evaluation.judge_bias import JudgedPair, JudgedResponse
    from rlhf_lightning.feedback.labeling import Label, Opinion, Pair
    from rlhf_lightning.stages.run_settings import RunSettings
    from rlhf_lightning.worlds.courtesy.recorded import RecordedJudgment

logger = logging.getLogger(__name__)

JUDGED = "judged.jsonl"
CHUNK = 64
"""Pairs per call of the judge."""


class JudgeCalibrationSettings(StageSection):
    """Agreement of the judge with human labels."""

    pairs: Annotated[int, Field(ge=20)]
    data: FileRef | None
    bootstrap_samples: Annotated[int, Field(ge=100)]


@register
class JudgeCalibrationStage(Stage):
    """Judge calibration: a judge, a constitution and human labels in, figures of their agreement out."""

    name = "judge_calibration"
    Settings = JudgeCalibrationSettings
    reads = ("seed", *JUDGE, "data.kind", "data.pairing", "callbacks.plots")
    not_read = OF_CRITIQUES
    relief = MemoryRelief(("judge.batch_size",), ("judge=openai",))

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        """`data.pairing`, unless pairs are built from the data's rankings; else nothing."""
        of_the_data = not isinstance(settings.data, CourtesyData) and _own(settings, name).data is None
        return frozenset() if of_the_data else frozenset({"data.pairing"})

    def unnamed_inputs(self, settings: RunSettings, name: str) -> Iterator[tuple[str, str]]:
        """The recorded judgments that ship with the courtesy world."""
        from rlhf_lightning.worlds.courtesy.recorded import recorded_path

        if isinstance(settings.data, CourtesyData) and _own(settings, name).data is None:
            yield f"{name}.data", str(recorded_path())

    def run(self, context: StageContext) -> StageResult:
        """Label human-labeled pairs with the judge, and report the agreement."""
        from rlhf_lightning.evaluation.judge_calibration import (
            calibration_figures,
            render_calibration,
            write_calibration,
        )
        from rlhf_lightning.stages.judging import CALIBRATION, judge_terms, judge_usage, open_labeler
        from rlhf_lightning.stages.monitoring import track

        settings, constitution = context.section(JudgeCalibrationSettings), context.settings.constitution
        context.seed_everything()
        origin = {
            "constitution": constitution.name,
            "constitution_hash": judge_hash(constitution),
            "judge_terms": judge_terms(context.settings.judge),
        }
        if not constitution.principles:
            logger.info(
                "Constitution %s has no principles: there is nothing to judge by, and no judge.", constitution.name
            )
            figures: dict[str, Any] = {**origin, "pairs": 0, "worth_training_on": None}
            _write_json(context.directory / CALIBRATION, figures)
            return StageResult(figures, objective=None)
        pairs, people = _judged_by_people(context)
        labeler = open_labeler(context)
        labels: list[Label] = []
        for start in track(range(0, len(pairs), CHUNK), "Judging what people have judged"):
            labels += labeler.labels(pairs[start : start + CHUNK])
        judged = [_judged(*three) for three in zip(pairs, labels, people, strict=True)]
        by_principle = [one for three in zip(pairs, labels, people, strict=True) for one in _by_principle(*three)]
        responses = [one for three in zip(pairs, labels, people, strict=True) for one in _responses(*three)]
        figures = calibration_figures(
            judged, by_principle, responses, bootstrap_samples=settings.bootstrap_samples, seed=context.seed
        )
        figures = {
            **origin,
            "judge": labeler.judge.name,
            "mode": context.settings.judge.mode,
            "questions": labeler.asked,
            "input_tokens": labeler.tokens[0],
            "output_tokens": labeler.tokens[1],
            **judge_usage(labeler),
            **figures,
        }
        _write_json(context.directory / CALIBRATION, figures)
        write_calibration(figures, context.directory, draw=context.settings.callbacks.plots)
        _write_judged(context.directory / JUDGED, pairs, labels, people)
        Console().print(render_calibration(figures))
        return StageResult(figures, objective=figures.get("accuracy"))


def _own(settings: RunSettings, name: str) -> JudgeCalibrationSettings:
    return cast(JudgeCalibrationSettings, settings.section(name))


@dataclass(frozen=True, slots=True)
class HumanJudgment:
    """Human labels of a pair.

    Attributes:
        prefers_first: overall preference; None for a tie.
        by_principle: the preference under one principle alone, and whether each response follows it; empty where that
            was not labeled.
    """

    prefers_first: bool | None
    by_principle: dict[str, tuple[bool, bool]]


def _judged_by_people(context: StageContext) -> tuple[list[Pair], list[HumanJudgment]]:
    """Pairs, the better response on a random side, and their human labels.

    Raises:
        DataError: there are none.
    """
    from rlhf_lightning.data.comparisons import read_human_comparisons
    from rlhf_lightning.feedback.labeling import Pair

    settings, data = context.section(JudgeCalibrationSettings), context.settings.data
    if settings.data is None and isinstance(data, CourtesyData):
        return _recorded_in_the_world(context.settings.constitution, settings.pairs)
    if settings.data is not None:
        on_bad_record = "error" if isinstance(data, CourtesyData) else data.on_bad_record
        comparisons = read_human_comparisons(Path(settings.data), on_bad_record)
    else:
        recorded = context.inputs.data.comparisons()
        if recorded is None:
            raise DataError(
                "The data holds no comparisons that the judge could be measured on.",
                where="judge_calibration.data=null",
                fix="name a file of comparisons with judge_calibration.data=FILE, or do without: "
                "ai_feedback.calibration_from=null and a pipeline without judge_calibration",
            )
        pairing = context.settings.data.pairing
        comparisons = [pair for side in recorded.preferences(pairing) for pair in side]
    rng = Random(context.seed)
    chosen = rng.sample(comparisons, min(settings.pairs, len(comparisons)))
    pairs, people = [], []
    for number, one in enumerate(chosen):
        better_first = rng.random() < 0.5
        first, second = (one.chosen, one.rejected) if better_first else (one.rejected, one.chosen)
        kind = context.inputs.data.kind_of(one.prompt) if settings.data is None else None
        pairs.append(Pair(number, one.prompt, first, second, kind))
        people.append(HumanJudgment(better_first, {}))
    return pairs, people


def _recorded_in_the_world(constitution: ConstitutionSettings, limit: int) -> tuple[list[Pair], list[HumanJudgment]]:
    """The judgments that ship with the courtesy world, by the traits that the constitution's principles ask for."""
    from rlhf_lightning.feedback.labeling import Pair
    from rlhf_lightning.worlds.courtesy.recorded import preferred_under, recorded_judgments

    named = {one.id: one.world.tag for one in constitution.principles if one.world is not None}
    weights: dict[str, float] = {}
    for one in constitution.principles:
        if one.world is not None:
            weights[one.world.tag] = weights.get(one.world.tag, 0.0) + one.weight
    pairs, people = [], []
    for number, recorded in enumerate(recorded_judgments()[:limit]):
        pairs.append(Pair(number, recorded.prompt, *recorded.responses))
        people.append(HumanJudgment(preferred_under(recorded, weights), _under_each(recorded, named)))
    return pairs, people


def _under_each(recorded: RecordedJudgment, named: dict[str, str]) -> dict[str, tuple[bool, bool]]:
    return {principle: recorded.traits[tag] for principle, tag in named.items()}


def _judged(pair: Pair, label: Label, human: HumanJudgment) -> JudgedPair:
    """A pair judged under the whole constitution."""
    from rlhf_lightning.evaluation.judge_bias import JudgedPair

    answered = [opinion for opinion in label.opinions if opinion.probability is not None]
    return JudgedPair(
        group=pair.prompt,
        responses=(pair.first, pair.second),
        human_prefers_a=human.prefers_first,
        probability=label.probability,
        principle=None,
        questions=len(label.opinions),
        unanswered=len(label.opinions) - len(answered),
        mass=label.mass,
        as_asked=label.as_asked,
    )


def _by_principle(pair: Pair, label: Label, human: HumanJudgment) -> list[JudgedPair]:
    """The pair judged under each principle alone, against the human label for it, or else the overall one."""
    from rlhf_lightning.evaluation.judge_bias import JudgedPair

    def preferred(opinion: Opinion) -> bool | None:
        if not human.by_principle:
            return human.prefers_first
        first, second = human.by_principle.get(opinion.principle, (False, False))
        return None if first == second else first

    return [
        JudgedPair(
            group=pair.prompt,
            responses=(pair.first, pair.second),
            human_prefers_a=preferred(opinion),
            probability=opinion.probability,
            principle=opinion.principle,
            questions=1,
            unanswered=int(opinion.probability is None),
            mass=opinion.mass,
            as_asked=opinion.as_asked,
        )
        for opinion in label.opinions
    ]


def _responses(pair: Pair, label: Label, human: HumanJudgment) -> list[JudgedResponse]:
    """Each response for which both a human label and a pointwise judgment say whether it follows a principle."""
    from rlhf_lightning.evaluation.judge_bias import JudgedResponse

    return [
        JudgedResponse(pair.prompt, opinion.principle, said, opinion.yes[side], opinion.mass)
        for opinion in label.opinions
        if opinion.yes is not None and opinion.principle in human.by_principle
        for side, said in enumerate(human.by_principle[opinion.principle])
    ]


def _write_judged(path: Path, pairs: Sequence[Pair], labels: Sequence[Label], people: Sequence[HumanJudgment]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair, label, human in zip(pairs, labels, people, strict=True):
            row = {
                "prompt": pair.prompt.plain(),
                "first": pair.first,
                "second": pair.second,
                "human_prefers_first": human.prefers_first,
                "probability": label.probability,
                "reason": label.reason,
                "opinions": [asdict(opinion) for opinion in label.opinions],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
