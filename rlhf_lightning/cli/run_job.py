"""`rlhf run-job DIR`: a job of a sweep, or one of a run's processes, from the config in its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.console import show_outcome
from rlhf_lightning.ranks import rank_info
from rlhf_lightning.runs.launch import run_processes
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.run_directory import RunDirectory


def main(argv: Sequence[str]) -> int:
    """Runs the job and returns the exit code."""
    (directory,) = argv
    run_dir = RunDirectory.open(Path(directory))
    outcome = run_processes(settings_from(run_dir.config), run_dir, run_dir.overrides)
    if rank_info().world_size == 1:  # else it is shown by the process that started this one
        show_outcome(outcome, run_dir.path)
    return outcome.exit_code
