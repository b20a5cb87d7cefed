"""Demonstrations that a stage left for another to imitate."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rlhf_lightning.data.formats import parse_demonstration, to_fields
from rlhf_lightning.data.rows import read_rows
from rlhf_lightning.records import Demonstration

DEMONSTRATIONS = "demonstrations.jsonl"


def write_demonstrations(demonstrations: Iterable[Demonstration], directory: Path) -> None:
    """Writes `demonstrations.jsonl`, one a line, which `data=files` reads too."""
    lines = [json.dumps(to_fields(one), ensure_ascii=False) + "\n" for one in demonstrations]
    (directory / DEMONSTRATIONS).write_text("".join(lines), encoding="utf-8")


def read_demonstrations(directory: Path) -> list[Demonstration]:
    """Read the file that `write_demonstrations` wrote.

    Raises:
        DataError: the file is missing, or a line is no demonstration.
    """
    return [parse_demonstration(row.fields(), row.place) for row in read_rows(directory / DEMONSTRATIONS)]
