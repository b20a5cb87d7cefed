"""`rlhf sweep`: goes on with a sweep that was stopped, or shows how one stands."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.text import Text

from rlhf_lightning.cli.console import stderr, stdout
from rlhf_lightning.cli.sweep_table import show_jobs, sweep_table
from rlhf_lightning.experiment.sweep.record import GOING_ON_EXIT, Sweep

EXIT_CODES = "exit code: 0 every job finished, 1 one did not, 130 one was interrupted, 3 one is running, 2 wrong usage"

WATCH_SECONDS = 2.0


def main(argv: Sequence[str]) -> int:
    """Runs `rlhf sweep` and returns the exit code."""
    arguments = parser().parse_args(list(argv))
    sweep = Sweep.open(Path(arguments.directory))
    if arguments.action == "resume":
        return resume(sweep, arguments.overrides)
    return watch(sweep) if arguments.watch else status(sweep)


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf sweep`."""
    arguments = argparse.ArgumentParser(prog="rlhf sweep", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    actions = arguments.add_subparsers(dest="action", required=True, metavar="ACTION")
    resuming = actions.add_parser(
        "resume",
        help="run what failed, was interrupted or killed, or has not begun; each job in its directory, by its config",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    showing = actions.add_parser("status", help="a table of its jobs", epilog=EXIT_CODES, allow_abbrev=False)
    for action in (resuming, showing):
        action.add_argument("directory", metavar="DIR", help="the sweep's directory, such as outputs/latest")
    resuming.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="launcher=..., launcher.jobs=..., sweep.on_failure=..."
    )
    showing.add_argument("--watch", action="store_true", help="keep it up to date until the sweep has ended")
    return arguments


def status(sweep: Sweep) -> int:
    """Print the progress of a sweep."""
    show_jobs(sweep)
    return sweep.exit_code


def watch(sweep: Sweep) -> int:
    """Show the progress of a sweep until no process runs it."""
    with Live(sweep_table(sweep), console=stdout(), auto_refresh=False) as live:
        while sweep.exit_code == GOING_ON_EXIT:
            time.sleep(WATCH_SECONDS)
            live.update(sweep_table(sweep), refresh=True)
    return sweep.exit_code


def resume(sweep: Sweep, overrides: Sequence[str]) -> int:
    """Run the unfinished jobs; a sweeper that samples jobs also samples the missing ones."""
    # Here and not above: Hydra's plugins take time to find, and who asks for the status need not wait.
    from rlhf_lightning.experiment.sweep.draw import draw_missing
    from rlhf_lightning.experiment.sweep.launchers import launch, stopped_by_signals
    from rlhf_lightning.experiment.sweep.resume import left_to_do, tell_anew

    with sweep.held(new=False):
        if overrides:
            tell_anew(sweep, overrides)
        jobs = left_to_do(sweep)
        stderr().print(Text(f"{len(jobs)} of {len(sweep.jobs)} jobs are left to do."))
        with stopped_by_signals(sweep):
            try:
                if jobs:
                    launch(sweep, jobs)
                if sweep.plan.draws and not sweep.stopped and not draw_missing(sweep):
                    stderr().print(
                        Text(
                            "The sweeper keeps no record of what it drew (hydra.sweeper.storage): no new"
                            " jobs are drawn."
                        )
                    )
            finally:
                show_jobs(sweep)
    return sweep.exit_code
