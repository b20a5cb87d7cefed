"""Resumable journal of a stage's rows, one line per batch: an interrupted stage neither repeats nor loses any."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.run_directory import write_whole, writing_to

logger = logging.getLogger(__name__)

IN_PROGRESS = "*.part.jsonl"
"""Journals of stages that have not finished."""
KEY_DIGITS = 12


class WorkJournal:
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
            write_whole(self.finished, "".join(map(_as_line, self.rows)))  # on disk before the journal is gone
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
