"""The work that a stage has done so far, a line a batch, so that an interrupted stage repeats and loses none of it."""

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
    """Rows that are added in whole batches, and become a file of JSON lines when the work is done.

    Until then a line holds a batch: one that was cut short is made again as a whole, or the next ones would be made in
    other company, and figures that depend on it in their last bits (a judge's) would differ. The name holds the stage's
    key: what was made by other settings or other code is not gone on with.

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
        """Appends a batch, and returns when it would outlast a power failure."""
        with writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(list(rows)))
            file.flush()
            os.fsync(file.fileno())
        self.rows += map(dict, rows)

    def finish(self) -> None:
        """Leaves the rows under the file's own name, a line each."""
        with writing_to(self.finished):
            write_whole(self.finished, "".join(map(_as_line, self.rows)))  # on disk before the journal is gone
            self.path.unlink(missing_ok=True)

    def _whole_rows(self) -> list[dict[str, Any]]:
        """Those of the batches that were written to their end; half a line at the end of the file is cut off."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return [row for line in whole.decode("utf-8").split("\n") if line for row in json.loads(line)]


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
