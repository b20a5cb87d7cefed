"""What W&B writes to a run's directory: how far it goes, and where a sweep shows it for `wandb leet`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

READ_SECONDS = 60.0
SWEEP_FOLDER = "wandb"
"""In a sweep's directory: links to the W&B runs of all jobs, for `wandb leet`."""


def next_step(parts: Iterable[Path]) -> int:
    """The step after the last row of history in the directories of a run's parts; 0 where they hold none.

    An offline run cannot be queried, so `wandb leet inspect` reads its file, up to the last whole record.

    Raises:
        OSError: a file cannot be read.
    """
    steps = [_last_step(file) for part in parts for file in part.glob("*.wandb")]
    return max((step for step in steps if step is not None), default=-1) + 1


def _last_step(file: Path) -> int | None:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    environment = {**os.environ, "WANDB_MODE": "offline"}  # it reports nothing to W&B then
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=READ_SECONDS
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"{file} cannot be read: {error}") from error
    step: int | None = json.loads(done.stdout)["step"]
    return step


def link_into_sweep(part: Path, sweep: Path) -> None:
    """Link the directory of a run's part into `SWEEP_FOLDER`; the link is relative and outlives a move of the sweep.

    Raises:
        OSError: the file system refuses.
    """
    shown = sweep / SWEEP_FOLDER
    shown.mkdir(exist_ok=True)
    (shown / part.name).symlink_to(os.path.relpath(part, shown))
