"""Input and output artifacts of a stage, for trackers that draw their lineage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.artifacts import BASE
from rlhf_lightning.experiment.run_directory import METRICS, RunDirectory
from rlhf_lightning.settings.model import CourtesyModel, HubModel
from rlhf_lightning.stages.readers import stage_inputs
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.tracking.lineage import Artifact, model_artifact, stage_artifact
from rlhf_lightning.worlds import courtesy

HUB = "https://huggingface.co"
DIGEST = "digest"
"""Name of a stage's key in metadata, where anything named key is redacted as a secret."""

KeyOf = Callable[[str], str]
"""The key of a stage of this run."""


def taken_in(settings: RunSettings, run: RunDirectory, stage: str, key_of: KeyOf) -> Iterable[Artifact]:
    """Input artifacts of a stage: earlier stages, named by their cache keys, and models."""
    artifacts = [_input(name, settings, run, key_of) for _, name in stage_inputs(settings, stage)]
    return {artifact.name: artifact for artifact in artifacts if artifact is not None}.values()


def left_by(
    settings: RunSettings, run: RunDirectory, stage: str, key_of: KeyOf, figures: Mapping[str, Any]
) -> Artifact:
    """Output artifact of a stage, with its inputs and figures as metadata."""
    metadata = {
        DIGEST: key_of(stage),
        "base": getattr(settings.model, "name_or_path", settings.model.kind),
        "peft": settings.peft.kind,
        "seed": settings.seed,
        "run": str(run.path),
        "figures": {name: value for name, value in figures.items() if name != "key"},
    }
    return stage_artifact(stage, key_of(stage), run.stage_dir(stage), metadata)


def _input(name: str, settings: RunSettings, run: RunDirectory, key_of: KeyOf) -> Artifact | None:
    """One input; None if it does not exist yet, such as a model that will be made from scratch."""
    if name in settings.sections_of_stages:
        return stage_artifact(name, key_of(name), run.stage_dir(name), {DIGEST: key_of(name)})
    if name == BASE:
        model = settings.model
        if isinstance(model, CourtesyModel):
            return model_artifact("courtesy", courtesy.asset_path())
        return _model(model.name_or_path, model.revision) if isinstance(model, HubModel) else None
    return _of_another_run(Path(name)) or _model(name, None)


def _model(name: str, revision: str | None) -> Artifact:
    """A model in a directory, or of the hub."""
    if Path(name).is_dir():
        return model_artifact("/".join(Path(name).resolve().parts[-2:]), Path(name))
    return model_artifact(name, f"{HUB}/{name}/tree/{revision or 'main'}")


def _of_another_run(directory: Path) -> Artifact | None:
    """Artifact of a stage of another run, under the name that it has there."""
    metrics, stage = directory.resolve().parent / METRICS, directory.resolve().name
    if not metrics.exists():
        return None
    key = json.loads(metrics.read_text(encoding="utf-8"))["stages"].get(stage, {}).get("key")
    return stage_artifact(stage, key, directory, {DIGEST: key}) if key else None
