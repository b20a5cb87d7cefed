"""`rlhf train`: one pipeline, or with -m a sweep of them, composed and overridden by Hydra; its help."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from rlhf_lightning.cli.console import show_outcome, stdout
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.ranks import rank_info
from rlhf_lightning.runs.compose import CONFIG_NAME, ConfigTree
from rlhf_lightning.runs.environment_checks import check_run_directory
from rlhf_lightning.runs.launch import broadcast_run_directory, join_processes_started_outside, join_run, run_processes
from rlhf_lightning.runs.overrides import as_hydra_reads
from rlhf_lightning.runs.preflight import check_run, told_to_job
from rlhf_lightning.runs.resume import (
    AUTO,
    ResumedRun,
    resume_from_directory,
    resume_with_settings,
    resumes_by_itself,
    split_resume,
)
from rlhf_lightning.runs.run import joins_a_run
from rlhf_lightning.stages.run_directory import RunDirectory, holds_a_run, pin_latest, point_latest
from rlhf_lightning.stages.run_settings import RunSettings

WIDTH = 118

INTRODUCTION = """\
rlhf train: supervised fine-tuning, reward model, PPO and evaluation, or Constitutional AI, in one command

usage: rlhf train [GROUP=OPTION ...] [KEY=VALUE ...] [flags]
"""

REST = """
Every key of every option can be set by its dotted name (ppo.clip_range=0.1). Values are checked before anything is
loaded. rlhf train --cfg job shows them all; the files in conf/ say what each one does.

flags:
  -m, --multirun            a sweep: every combination of comma-separated values, range(1,9,2), choice(a,b)
  -c, --cfg job|hydra|all   print the config and stop; with -p KEY only that part, with --resolve without ${...}
  -i, --info [WHAT]         how the config was put together: defaults, defaults-tree, searchpath, plugins, config
  -cd, --config-dir DIR     a folder of your own options (DIR/experiment/mine.yaml), looked through first
  -h, --help

examples:
  rlhf train                                            the whole pipeline in the embedded world
  rlhf train debug=tiny                                 everything runs, nothing is learned: seconds
  rlhf train kl=none seed=2                             without a KL penalty: watch the reward being hacked
  rlhf train pipeline=constitutional constitution=hhh   Constitutional AI: feedback from a model, by principles
  rlhf train -m sweep=constitution                      nine constitutions, three seeds: what does each do to a policy?
  rlhf train -m kl.coef=0.02,0.2 seed=1,2               four runs, one table
  rlhf train experiment=hh_rlhf_scratch data.path=harmless-base.jsonl.gz
  rlhf train model=hub model.name_or_path=DIR data=files data.preferences=pairs.jsonl trainer=gpu
  rlhf train pipeline=ppo ppo.policy_from=outputs/latest/sft ppo.reward_from=outputs/latest/reward_model
  rlhf train resume=outputs/latest                      go on with an interrupted run

A run leaves everything in outputs/runs/DATE/TIME (outputs/latest points to the newest): config.yaml, status.json,
metrics.json, history.csv, samples.jsonl, plots/, and a directory per stage that Transformers opens.
"""


def help_text(tree: ConfigTree) -> str:
    """Help text of `rlhf train`, with all current config groups, including the user's own."""
    return f"{INTRODUCTION}\ngroups (the default is marked *):\n{_groups(tree)}\n{REST}"


def _groups(tree: ConfigTree) -> str:
    defaults = tree.choices()
    shown = [group for group in tree.groups() if "@" not in group and tree.options(group)]
    width = max(len(group) for group in shown)
    lines = []
    for group in shown:
        options = [f"{name}*" if name == defaults[group] else name for name in tree.options(group)]
        indent = " " * (width + 4)
        line = textwrap.fill("  ".join(options), WIDTH, initial_indent=indent, subsequent_indent=indent)
        lines.append(f"  {group:<{width}}  {line.strip()}")
    return "\n".join(lines)


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

        if rank_info().world_size > 1:
            what = "a sweep starts the processes of its jobs itself, and several processes were started here"
            raise ConfigError([Problem("-m", what, fix="start it once, without torchrun or srun")])
        return run_sweep(tree, overrides, Path(arguments.config_dir) if arguments.config_dir else None)
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
    """Checks one run, a new one or one to go on with, and carries it out."""
    overrides = pin_latest(overrides)
    named, others = split_resume(tree, overrides)
    if named not in (None, AUTO):
        return resume_run(resume_from_directory(tree, Path(named), others))
    checked = check_run(tree, overrides)
    settings, directory = checked.settings, checked.directories.run
    assert settings is not None
    if settings.resume not in (None, AUTO):  # a config file says so
        return resume_run(resume_from_directory(tree, Path(settings.resume), others))
    if resumes_by_itself(settings) and holds_a_run(directory):
        return resume_run(resume_with_settings(RunDirectory.open(directory), settings, others))
    join_processes_started_outside(settings.trainer)
    if joins_a_run():
        return join_run().exit_code
    check_run_directory(directory)
    return _start(tree, settings, directory, others)


def resume_run(resumed: ResumedRun) -> int:
    """Carries on with a run that was interrupted, or says that there is nothing left to do."""
    run_dir, settings = resumed.run, resumed.settings
    if run_dir.status.state == "finished":
        stdout().print(Text(f"The run in {run_dir.path} has finished: there is nothing to resume."), soft_wrap=True)
        return 0
    join_processes_started_outside(settings.trainer)
    if joins_a_run():
        return join_run().exit_code
    with run_dir.held():
        resumed.record()
    point_latest(Path(settings.paths.outputs), run_dir.path)
    broadcast_run_directory(run_dir)
    outcome = run_processes(settings, run_dir, resumed.overrides)
    show_outcome(outcome, run_dir.path)
    return outcome.exit_code


def _start(tree: ConfigTree, settings: RunSettings, directory: Path, overrides: Sequence[str]) -> int:
    """Claims the run directory and runs the pipeline in it."""
    directory = directory.absolute()
    settings = settings.model_copy(update={"paths": settings.paths.model_copy(update={"run_dir": str(directory)})})
    typed = told_to_job(as_hydra_reads(tree, tree.parse(overrides)))
    run_dir = RunDirectory.create(directory, settings.model_dump(mode="json"), typed)
    point_latest(Path(settings.paths.outputs), run_dir.path)
    broadcast_run_directory(run_dir)
    outcome = run_processes(settings, run_dir, typed)
    show_outcome(outcome, run_dir.path)
    return outcome.exit_code
