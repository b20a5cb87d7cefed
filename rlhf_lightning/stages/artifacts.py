"""Resolve the model names of a config: the base model, an earlier stage, a directory, or a hub id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rlhf_lightning.atomic import temporary_beside
from rlhf_lightning.data.sources import DataSource
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.hub import ModelSource, is_adapter
from rlhf_lightning.models.settings import HubModel, QLora, ScratchModel
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds import courtesy

BASE = "base"


def resolve_model(name: str, settings: RunSettings, run: RunDirectory, data: DataSource) -> ModelSource:
    """Source of a model named in the config.

    Args:
        name: `base` (the model group's), a stage of this run, a directory, or a hub id.
        data: trains the tokenizer of a model from scratch.

    Raises:
        ArtifactError: the stage has no artifact.
    """
    peft = settings.peft
    if name == BASE:
        source = _base(settings, run, data)
    else:
        if name in settings.sections_of_stages:
            name = str(finished(run, name))
        base = _base(settings, run, data) if is_adapter(Path(name)) else None
        source = ModelSource(name, dtype=settings.model.dtype, base=base)
    if isinstance(peft, QLora):
        return replace(source, quantization=peft.quantization, double_quantization=peft.double_quantization)
    return source


def finished(run: RunDirectory, stage: str) -> Path:
    """Directory of a finished stage's artifact.

    Raises:
        ArtifactError: it has left none.
    """
    directory = run.stage_dir(stage)
    if not any(directory.glob("*")):
        raise ArtifactError(
            f"Stage {stage} left nothing to go on from.", where=str(directory), fix=f"run stage {stage} first"
        )
    return directory


def _base(settings: RunSettings, run: RunDirectory, data: DataSource) -> ModelSource:
    model = settings.model
    if isinstance(model, HubModel):
        return ModelSource(
            model.name_or_path,
            dtype=model.dtype,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            chat_template=model.chat_template,
        )
    if isinstance(model, ScratchModel):
        directory = run.path / BASE
        if not directory.exists():
            from rlhf_lightning.models.scratch import random_model, train_tokenizer  # imports Transformers

            tokenizer = train_tokenizer(data.texts(), model.vocab_size)
            with temporary_beside(directory) as temporary:
                # The same weights, whichever stage needs them first and whatever random numbers it has drawn.
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(settings.seed)
                    random_model(model, tokenizer).save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                temporary.rename(directory)  # a run killed before this finds no partial model when it resumes
        return ModelSource(str(directory), dtype=model.dtype)
    return ModelSource(str(courtesy.asset_path()), dtype=model.dtype)
