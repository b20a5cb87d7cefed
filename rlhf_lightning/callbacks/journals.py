"""Append-only files of a training, truncated when the training resumes from an earlier point."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LINES = "*.jsonl"


class Journals:
    """The history file of a run and the line files of one stage.

    Args:
        history: of the run.
        stage_dir: the stage's own directory; every `.jsonl` file in it is a journal.
    """

    def __init__(self, history: Path, stage_dir: Path) -> None:
        self.history = history
        self.stage_dir = stage_dir

    def lengths(self) -> dict[str, int]:
        """The bytes of each journal, by its path relative to the run directory."""
        return {self._name(path): path.stat().st_size for path in self._present()}

    def flush(self) -> None:
        """Flush the appended lines to disk."""
        for path in self._present():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Truncate the journals to earlier lengths; one that did not exist yet is removed.

        Args:
            lengths: as `lengths` gave them.
        """
        for path in self._present():
            length = lengths.get(self._name(path))
            if length is None:
                path.unlink()
            else:
                os.truncate(path, min(length, path.stat().st_size))

    def _present(self) -> list[Path]:
        return [path for path in (self.history, *sorted(self.stage_dir.glob(LINES))) if path.exists()]

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.history.parent))
