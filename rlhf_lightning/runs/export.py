"""Export a finished model from a run: a Hugging Face directory with a model card, written atomically."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.atomic import temporary_beside
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.adapter_files import read_adapter
from rlhf_lightning.models.adapters import merge_adapter
from rlhf_lightning.models.hub import ModelSource, is_adapter
from rlhf_lightning.models.loading import load_classifier, load_policy, load_tokenizer, save_classifier, save_policy
from rlhf_lightning.models.virtual_tokens import virtual_tokens
from rlhf_lightning.runs.model_card import ExportedModel, Form, model_card
from rlhf_lightning.stages.plugins import trained_models
from rlhf_lightning.stages.run_directory import RunDirectory

EXPORTED = "exported"
CARD = "README.md"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_model.json",
)
"""Files of a model beside its tokenizer; a stage's directory has more."""


@dataclass(frozen=True, slots=True)
class Export:
    """Result of an export: the directory and what it holds."""

    directory: Path
    model: ExportedModel

    @property
    def files(self) -> dict[str, int]:
        """Bytes by file."""
        return {path.name: path.stat().st_size for path in sorted(self.directory.iterdir())}


def export(run_dir: Path, *, stage: str | None, merge: bool, target: Path | None) -> Export:
    """Writes a stage's model as a directory of its own.

    Args:
        stage: one that trains a model; None for the last of them that a finished run has.
        merge: add an adapter to its base's weights; a model that is whole already is written as it is.
        target: where to; new or empty. None for `exported/STAGE` (`exported/STAGE-merged`) in the run.

    Raises:
        RunDirectoryError: there is no run.
        ArtifactError: the stage left no model, the target is taken or cannot be written, or virtual tokens would have
            to be merged.
        ModelError: the model, or the base of an adapter, cannot be opened.
    """
    run = RunDirectory.open(run_dir.resolve())
    chosen, artifact = _artifact(run, stage)
    tokenizer = load_tokenizer(ModelSource(str(artifact)))
    model = _described(run, chosen, artifact, merge=merge, chats=tokenizer.chat_template is not None)
    target = (target or run.path / EXPORTED / f"{chosen}{'-merged' if model.form == 'merged' else ''}").absolute()
    with _written_whole(target) as directory:
        if model.form == "merged":
            _write_merged(model, artifact, tokenizer, directory)
        else:
            _copy(artifact, tokenizer, directory)
        (directory / CARD).write_text(model_card(model), encoding="utf-8")
    return Export(target, model)


def _artifact(run: RunDirectory, stage: str | None) -> tuple[str, Path]:
    """The stage to export and its directory.

    Raises:
        ArtifactError: it has not finished, or is no stage that leaves a model.
    """
    status = run.status
    left = [name for name in trained_models(run.config) if name in status.artifacts]
    if stage is None and status.state == "finished":
        stage = next((name for name in reversed(status.artifacts) if name in left), None)
    if stage is not None and stage in left:
        return stage, run.path / status.artifacts[stage]
    there = f"export what it has: --stage {' or '.join(left)}" if left else "there is no other model to export"
    if status.state == "finished":
        named = f" of stage {stage}" if stage is not None else ""
        raise ArtifactError(f"The run trained no model{named}.", where=str(run.path), fix=there)
    end = "wait until it has ended" if status.state == "running" else f"go on with it: rlhf train resume={run.path}"
    named = f", and stage {stage} has left no model" if stage is not None else ""
    raise ArtifactError(f"The run is {status.state}{named}.", where=str(run.path), fix=f"{end}; or {there}")


def _described(run: RunDirectory, stage: str, artifact: Path, *, merge: bool, chats: bool) -> ExportedModel:
    if not is_adapter(artifact):
        return ExportedModel(run, stage, "whole", chats)
    form: Form = "merged" if merge else "adapter"
    return ExportedModel(run, stage, form, chats, read_adapter(artifact).base, run.config["peft"]["kind"])


def _write_merged(model: ExportedModel, artifact: Path, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    source = ModelSource(str(artifact), dtype=model.run.config["model"]["dtype"])
    opened = load_policy(source) if model.is_policy else load_classifier(source)
    if virtual_tokens(opened) is not None:
        raise _unmergeable(opened, artifact)
    merge_adapter(opened)
    (save_policy if model.is_policy else save_classifier)(opened, tokenizer, directory)


def _unmergeable(opened: PreTrainedModel, artifact: Path) -> ArtifactError:
    """Error for prompt tuning: virtual tokens cannot be merged into the weights or added to the vocabulary."""
    reason = (
        "the base's embedding is tied to its output head, so as words of its vocabulary they would be said, too"
        if opened.config.get_text_config().tie_word_embeddings
        else "as words of its vocabulary they would need rows in the output head, and could be said, too"
    )
    return ArtifactError(
        f"Virtual tokens cannot be merged. They stand in front of a text and change no weight; {reason}.",
        where=str(artifact),
        fix="export without --merge: PEFT opens the adapter on its base",
    )


def _copy(artifact: Path, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Copies a model's files bit for bit, and saves its tokenizer."""
    for pattern in MODEL_FILES:
        for file in artifact.glob(pattern):
            shutil.copyfile(file, directory / file.name)  # a writable copy, even if the artifact is read-only
    tokenizer.save_pretrained(directory)


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A temporary directory beside the target, renamed to it if the `with` block succeeds, else removed.

    Raises:
        ArtifactError: the target has something in it, or the operating system refuses.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ArtifactError("The target is taken.", where=str(target), fix="choose another with --to DIR, or remove it")
    try:
        with temporary_beside(target) as temporary:
            temporary.mkdir(parents=True)
            yield temporary
            temporary.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ArtifactError(
            f"The export cannot be written: {reason}.",
            where=str(target),
            fix="free space, check permissions, or choose another place with --to DIR",
        ) from error
