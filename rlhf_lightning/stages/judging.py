"""Open the judge that a config names."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.feedback.judge_model import JudgeModel
from rlhf_lightning.feedback.labeling import Labeler
from rlhf_lightning.feedback.local_models import LocalJudgeModel
from rlhf_lightning.feedback.openai_judge import OpenAiJudgeModel
from rlhf_lightning.feedback.settings import HubJudge, JudgeSettings, OpenAiJudge
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy
from rlhf_lightning.stages.context import StageContext
from rlhf_lightning.stages.prompting import open_encoder, phrasing_for
from rlhf_lightning.stages.readers import is_among, without_effect
from rlhf_lightning.stages.run_settings import RunSettings

CALIBRATION = "calibration.json"
"""File with the figures of stage `judge_calibration`."""


def open_labeler(context: StageContext) -> Labeler:
    """The judge, ready to label pairs under the run's constitution."""
    settings = context.settings
    judge, is_plain = _open_judge(context)
    phrasing = phrasing_for(settings, settings.judge.phrasing, settings.judge.fewshots, is_plain)
    return Labeler(judge, settings.constitution, phrasing, settings.judge, context.seed)


def judge_usage(labeler: Labeler) -> dict[str, dict[str, float]]:
    """Usage and cost of a judge behind a server since it was opened, as figures; empty for a local judge."""
    judge = labeler.judge
    return {"judge_usage": judge.usage.figures()} if isinstance(judge, OpenAiJudgeModel) else {}


def judge_terms(settings: JudgeSettings) -> dict[str, Any]:
    """The settings of a judge's questions and labels, for which a calibration is valid.

    The path of its model is left out: the same model may lie elsewhere, or come from the cache.
    """
    plain = settings.model_dump(mode="json", exclude={"model_from", "name_or_path"})
    free = without_effect(RunSettings)
    return {key: value for key, value in plain.items() if not is_among(f"judge.{key}", free)}


def judge_source(context: StageContext) -> ModelSource | None:
    """Source of the judge's model; None for one behind a server."""
    settings = context.settings.judge
    if isinstance(settings, OpenAiJudge):
        return None
    if isinstance(settings, HubJudge):
        return ModelSource(
            settings.name_or_path,
            dtype=settings.dtype,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.chat_template,
        )
    return context.inputs.model(settings.model_from)


def _open_judge(context: StageContext) -> tuple[JudgeModel, bool]:
    """The judge, and True if it is a model without a chat template."""
    settings, source = context.settings.judge, judge_source(context)
    if isinstance(settings, OpenAiJudge) or source is None:
        assert isinstance(settings, OpenAiJudge)
        return OpenAiJudgeModel(settings), False
    encoder, is_plain = open_encoder(context, source)
    model = LocalJudgeModel(
        load_policy(source, context.device),
        encoder,
        name=source.name_or_path,
        batch_size=settings.batch_size,
        max_reasoning_tokens=settings.max_reasoning_tokens,
        seed=context.seed,
        is_plain=is_plain,
    )
    return model, is_plain
