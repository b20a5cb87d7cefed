"""Interrupted stages: a journal of rows that resumes without repeating or losing any; restore of a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.algorithms.checkpoints import LINES, AppendedFiles, checkpoints_in, newest_loadable
from rlhf_lightning.atomic import write_text
from rlhf_lightning.stages.run_directory import RunDirectory, writing_to
from rlhf_lightning.tracking.history_file import HISTORY_FILE, forget_stage

logger = logging.getLogger(__name__)

IN_PROGRESS = "*.part.jsonl"
"""Journals of stages that have not finished."""
KEY_DIGITS = 12


class ResumableJsonl:
    """Rows that are added in whole batches, and written as a JSON lines file when the work is done.

    Until then a line holds a batch. A batch that was cut short is redone as a whole: otherwise later rows would be
    batched differently, which may change figures (a judge's) in their last bits. The file name holds the stage's key,
    so that rows made by other settings or other code are not reused.

    Args:
        directory: of the stage.
        name: of the finished file, e.g. `chains.jsonl`.
        key: of the stage.

    Attributes:
        rows: of all batches.
    """

    def __init__(self, directory: Path, name: str, key: str) -> None:
        stem = name.removesuffix(".jsonl")
        self.finished = directory / name
        self.path = directory / f"{stem}.{key[:KEY_DIGITS]}.part.jsonl"
        with writing_to(directory):
            for other in directory.glob(f"{stem}.*.part.jsonl"):
                if other != self.path:
                    logger.warning("%s was begun by other settings or other code, and is begun anew.", name)
                    other.unlink()
            self.rows = self._whole_rows()
        if self.rows:
            logger.info("%s: %d rows were there already.", name, len(self.rows))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends a batch and flushes it to disk."""
        with writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(list(rows)))
            file.flush()
            os.fsync(file.fileno())
        self.rows += map(dict, rows)

    def finish(self) -> None:
        """Writes the rows to the finished file, one per line."""
        with writing_to(self.finished):
            write_text(self.finished, "".join(map(_as_line, self.rows)))  # on disk before the journal is gone
            self.path.unlink(missing_ok=True)

    def _whole_rows(self) -> list[dict[str, Any]]:
        """The rows of complete batches; an incomplete last line is cut off the file."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return [row for line in whole.decode("utf-8").split("\n") if line for row in json.loads(line)]


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def appended_files(run: RunDirectory, stage: str) -> AppendedFiles:
    """The files that a stage appends to."""
    return AppendedFiles(run.path / HISTORY_FILE, run.stage_dir(stage))


def restore(run: RunDirectory, stage: str) -> Path | None:
    """Restores the run directory to the state of the stage's newest checkpoint.

    An incomplete artifact and everything logged after the checkpoint are removed. Without a checkpoint, everything of
    the stage is removed, except the journals of stages that resume from them (`ResumableJsonl`). Nothing is done if the
    stage has not run before.

    Returns:
        The checkpoint to resume from; None to start.

    Raises:
        CheckpointError: a checkpoint could run code.
        RunDirectoryError: the directory cannot be written.
    """
    found = newest_loadable(run.checkpoint_dir(stage))
    directory = run.stage_dir(stage)
    with writing_to(run.path):
        for path in directory.iterdir():
            if not path.match(IN_PROGRESS if found is None else LINES):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if found is None:
            forget_stage(run.path, stage)
        else:
            appended_files(run, stage).truncate(found.journals)
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
