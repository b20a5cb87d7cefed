"""`rlhf run-job DIR`: one job of a sweep, in a process of its own, from the config in its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.console import show_outcome
from rlhf_lightning.experiment.run import execute
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.validation import settings_from


def main(argv: Sequence[str]) -> int:
    """Runs the job and returns the exit code."""
    (directory,) = argv
    run_dir = RunDirectory.open(Path(directory))
    outcome = execute(settings_from(run_dir.config), run_dir, run_dir.overrides)
    show_outcome(outcome)
    return outcome.exit_code
