"""`rlhf rerun`: does a finished run again, with the config and environment that it had, and compares the figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stderr, stdout
from rlhf_lightning.errors import ConfigError, Problem, ReproductionError
from rlhf_lightning.ranks import rank_info
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.reproduction import Comparison, Rerun, compare_figures, prepare
from rlhf_lightning.stages.run_directory import REPRODUCE, REPRODUCTION

OTHER_FIGURES = 3
"""The exit code where the figures differ."""

MOST_SHOWN = 20
"""Differing figures that are printed; all of them are in reproduction.json."""


def main(argv: Sequence[str]) -> int:
    """Does a run again and returns the exit code: 0 if its figures are the same."""
    arguments = parser().parse_intermixed_args(list(argv))
    if rank_info().world_size > 1:
        what = "a run is done again in the processes that its config asks for, and several were started here"
        raise ConfigError([Problem("rerun", what, fix="start it once, without torchrun or srun")])
    to = Path(arguments.to) if arguments.to else None
    rerun = prepare(ConfigTree.load(), Path(arguments.run), to, arguments.overrides)
    obstacles = rerun.obstacles()
    if obstacles and not arguments.force:
        raise ReproductionError(
            f"What decides the figures has changed since the run: {'; '.join(obstacles)}.",
            where=str(rerun.original.path),
            fix=f"bash {rerun.original.path / REPRODUCE} takes the code that it ran with; --force goes on regardless",
        )
    console = stderr()
    for change in obstacles:
        console.print(Text(f"Has changed since the run: {change}. Its figures may be others."))
    for doubt in rerun.doubts():
        console.print(Text(f"May change the last bits: {doubt}."))
    return carry_out(rerun)


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf rerun`."""
    arguments = argparse.ArgumentParser(
        prog="rlhf rerun",
        description=__doc__,
        epilog="exit code: 0 the same figures, 3 other figures, 2 refused, otherwise how the new run failed. "
        "reproduce.sh in a run directory calls this with the code that the run had.",
        allow_abbrev=False,
    )
    arguments.add_argument("run", metavar="RUN_DIR", help="a finished run")
    arguments.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="logger=wandb and the like: what leaves the result alone"
    )
    arguments.add_argument("--to", metavar="DIR", help="the new run's directory (default: RUN_DIR-rerun)")
    arguments.add_argument("--force", action="store_true", help="also where code, packages or data have changed")
    return arguments


def carry_out(rerun: Rerun) -> int:
    """Runs it and says how its figures compare."""
    stdout().print(Text(f"Runs again in {rerun.target}"), soft_wrap=True)
    run, outcome = rerun.run()
    if outcome.exit_code:
        return outcome.exit_code
    comparison = compare_figures(rerun.original.metrics or {}, run.metrics or {})
    run.write_json(REPRODUCTION, {"of": str(rerun.original.path), **asdict(comparison)})
    show(comparison)
    return OTHER_FIGURES if comparison.differences else 0


def show(comparison: Comparison) -> None:
    """Prints that all figures are the same, or which are not."""
    console = stdout()
    different = comparison.differences
    if not different:
        console.print(Text(f"The same: all {comparison.compared} figures, to the last bit."))
        return
    console.print(Text(f"Not the same: {len(different)} of {comparison.compared} figures differ."))
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "then", "now"):
        table.add_column(name, overflow="fold")
    for difference in different[:MOST_SHOWN]:
        table.add_row(difference.name, str(difference.first), str(difference.second))
    console.print(table)
    if len(different) > MOST_SHOWN:
        console.print(Text(f"and {len(different) - MOST_SHOWN} more, in {REPRODUCTION}"))
