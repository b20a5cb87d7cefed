"""`rlhf train`: one pipeline, or with -m a sweep of them, composed and overridden by Hydra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from rlhf_lightning.cli.console import show_outcome
from rlhf_lightning.cli.train_help import help_text
from rlhf_lightning.errors import RlhfError
from rlhf_lightning.experiment.compose import CONFIG_NAME, ConfigTree
from rlhf_lightning.experiment.job_overrides import as_hydra_reads
from rlhf_lightning.experiment.preflight import check_run
from rlhf_lightning.experiment.run import Outcome, execute, joins_a_run
from rlhf_lightning.experiment.run_directory import RunDirectory, pin_latest, point_latest, writing_to
from rlhf_lightning.experiment.surroundings import check_run_directory
from rlhf_lightning.experiment.task import job_directory, job_settings, typed_overrides


def main(argv: Sequence[str]) -> int:
    """Runs `rlhf train` and returns the exit code."""
    arguments = parser().parse_intermixed_args(list(argv))
    tree = ConfigTree.load(Path(arguments.config_dir) if arguments.config_dir else None)
    overrides: list[str] = arguments.overrides
    if arguments.help:
        sys.stdout.write(help_text(tree))
    elif arguments.shell_completion:
        tree.hydra.shell_completion(CONFIG_NAME, overrides)
    elif arguments.cfg:
        check_run(tree, overrides, to_show=True)
        texts = as_hydra_reads(tree, tree.parse(overrides))
        tree.hydra.show_cfg(CONFIG_NAME, texts, arguments.cfg, arguments.package, arguments.resolve)
    elif arguments.info:
        check_run(tree, overrides, to_show=True)
        tree.hydra.show_info(arguments.info, CONFIG_NAME, as_hydra_reads(tree, tree.parse(overrides)))
    elif arguments.multirun:
        from rlhf_lightning.cli.multirun import run_sweep

        return run_sweep(tree, overrides)
    else:
        return run_single(tree, overrides)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags of `rlhf train`, named as Hydra names them."""
    flags = argparse.ArgumentParser(prog="rlhf train", add_help=False, allow_abbrev=False)
    flags.add_argument("overrides", nargs="*")
    flags.add_argument("-h", "--help", action="store_true")
    flags.add_argument("-m", "--multirun", action="store_true")
    flags.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    flags.add_argument("--resolve", action="store_true")
    flags.add_argument("-p", "--package")
    flags.add_argument("-cd", "--config-dir")
    flags.add_argument(
        "-i",
        "--info",
        nargs="?",
        const="all",
        choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    )
    flags.add_argument("-sc", "--shell-completion", action="store_true")
    return flags


def run_single(tree: ConfigTree, overrides: Sequence[str]) -> int:
    """Checks one run and carries it out in this process."""
    overrides = pin_latest(overrides)
    checked = check_run(tree, overrides)
    directory = checked.directories.run
    if not joins_a_run():
        check_run_directory(directory)
    outcomes: list[Outcome] = []
    refusals: list[RlhfError] = []

    def task(config: DictConfig) -> None:
        try:
            outcomes.append(_run_job(config))
        except RlhfError as error:
            refusals.append(error)  # Hydra would announce it in its own words as well

    with writing_to(directory):
        tree.hydra.run(CONFIG_NAME, task, as_hydra_reads(tree, tree.parse(overrides)))
    if refusals:
        raise refusals[0]
    show_outcome(outcomes[0])
    return outcomes[0].exit_code


def _run_job(config: DictConfig) -> Outcome:
    """Claims the run directory and runs the pipeline in it."""
    settings = job_settings(config)
    typed = typed_overrides()
    if joins_a_run():
        run_dir = RunDirectory.open(job_directory())
    else:
        run_dir = RunDirectory.create(job_directory(), settings.model_dump(mode="json"), typed)
        point_latest(Path(settings.paths.outputs), run_dir.path)
    return execute(settings, run_dir, typed)
