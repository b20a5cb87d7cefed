"""`rlhf train -m`: run a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from rlhf_lightning.cli.console import stderr
from rlhf_lightning.cli.sweep import show_jobs
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.environment_checks import check_run_directory
from rlhf_lightning.runs.preflight import Checked, check_sweep
from rlhf_lightning.runs.sweep_adaptive import run_adaptive
from rlhf_lightning.runs.sweep_jobs import launch, stop_on_signals
from rlhf_lightning.runs.sweep_record import Sweep
from rlhf_lightning.runs.sweep_start import prepare
from rlhf_lightning.stages.run_directory import pin_latest, point_latest


def run_sweep(tree: ConfigTree, overrides: Sequence[str], config_dir: Path | None) -> int:
    """Checks every job of a sweep, runs them, and prints how they ended.

    Args:
        tree: the config folder.
        overrides: as the user typed them.
        config_dir: the user's own folder of configs, in `tree` already.
    """
    overrides = pin_latest(overrides)
    checked = check_sweep(tree, overrides)
    _refuse_resuming(checked)
    sweep = Sweep(checked[0].directories.sweep.absolute())
    check_run_directory(sweep.directory)
    with sweep.held(new=True):
        prepare(sweep, tree, overrides, checked, config_dir)
        settings = checked[0].settings
        assert settings is not None
        point_latest(Path(settings.paths.outputs), sweep.directory)
        stderr().print(Text(f"The sweep's directory: {sweep.directory}"))
        with stop_on_signals(sweep):
            try:
                if sweep.plan.draws:
                    run_adaptive(sweep, tree, overrides)
                else:
                    launch(sweep, sweep.jobs)
            finally:
                show_jobs(sweep)
    return sweep.exit_code


def _refuse_resuming(checked: Sequence[Checked]) -> None:
    if any(job.settings is not None and job.settings.resume is not None for job in checked):
        fix = "rlhf sweep resume DIR"
        raise ConfigError([Problem("resume", "goes on with a single run", fix=fix)])
