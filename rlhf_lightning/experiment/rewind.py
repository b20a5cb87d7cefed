"""Restore an interrupted stage to its newest checkpoint, or to its start."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rlhf_lightning.callbacks.checkpoint_reading import checkpoints_in, newest_readable
from rlhf_lightning.callbacks.journals import LINES, Journals
from rlhf_lightning.experiment.run_directory import RunDirectory, writing_to
from rlhf_lightning.experiment.work_journal import IN_PROGRESS
from rlhf_lightning.tracking.history_file import HISTORY_FILE, forget_stage

logger = logging.getLogger(__name__)


def journals_of(run: RunDirectory, stage: str) -> Journals:
    """The files that a stage appends to."""
    return Journals(run.path / HISTORY_FILE, run.stage_dir(stage))


def rewind(run: RunDirectory, stage: str) -> Path | None:
    """Restores the run directory to the state of the stage's newest checkpoint.

    An incomplete artifact and everything logged after the checkpoint are removed. Without a checkpoint, everything of
    the stage is removed, except the journals of stages that resume from them (`WorkJournal`). Nothing is done if the
    stage has not run before.

    Returns:
        The checkpoint to resume from; None to start.

    Raises:
        CheckpointError: a checkpoint could run code.
        RunDirectoryError: the directory cannot be written.
    """
    found = newest_readable(run.checkpoint_dir(stage))
    directory = run.stage_dir(stage)
    with writing_to(run.path):
        for path in directory.iterdir():
            if not path.match(IN_PROGRESS if found is None else LINES):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if found is None:
            forget_stage(run.path, stage)
        else:
            journals_of(run, stage).rewind(found.journals)
    if found is not None:
        logger.info("Stage %s goes on from %s.", stage, found.path.relative_to(run.path))
        return found.path
    return None


def start_over(run: RunDirectory, stage: str) -> None:
    """Removes everything of a stage: its checkpoints, its artifact, complete or not, and its figures.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    with writing_to(run.path):
        drop_checkpoints(run, stage)
        for path in run.stage_dir(stage).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        forget_stage(run.path, stage)


def drop_checkpoints(run: RunDirectory, stage: str) -> None:
    """Removes the checkpoints of a finished stage, whose artifact replaces them."""
    for path in checkpoints_in(run.checkpoint_dir(stage)):
        path.unlink()
    for directory in (run.checkpoint_dir(stage), run.checkpoint_dir(stage).parent):
        if directory.exists() and not any(directory.iterdir()):
            directory.rmdir()
