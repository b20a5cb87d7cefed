"""The work that a stage has done so far, a line a piece, so that an interrupted stage repeats and loses none of it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.run_directory import writing_to

logger = logging.getLogger(__name__)

IN_PROGRESS = "*.part.jsonl"
"""Journals of stages that have not finished."""
KEY_DIGITS = 12


class WorkJournal:
    """A file of JSON lines that is added to in whole batches, and gets its own name when the work is done.

    Until then its name holds the stage's key: what was made by other settings or other code is not gone on with.

    Args:
        directory: of the stage.
        name: of the finished file, e.g. `chains.jsonl`.
        key: of the stage.

    Attributes:
        rows: what is in it.
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
            logger.info("%s: %d lines were there already.", name, len(self.rows))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends a batch, and returns when it would outlast a power failure."""
        with writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self.rows += map(dict, rows)

    def finish(self) -> None:
        """Gives the file its own name."""
        with writing_to(self.path):
            self.path.touch()
            self.path.replace(self.finished)

    def _whole_rows(self) -> list[dict[str, Any]]:
        """The lines that were written to their end; half a line at the end of the file is cut off."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
