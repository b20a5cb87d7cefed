"""Errors and outcomes as a person reads them: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from rlhf_lightning.errors import ConfigError, Problem, RlhfError
from rlhf_lightning.runs.run import Outcome

PIPED_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def stderr() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def show_error(error: RlhfError) -> None:
    """Print an error that the user can fix."""
    console = stderr()
    if not console.is_terminal:
        console.print(Text(error.render()))
        return
    if isinstance(error, ConfigError):
        body: RenderableType = Group(Text(error.what), *(_problem(problem) for problem in error.problems))
        console.print(Panel(body, title="config error", border_style="red", title_align="left"), soft_wrap=False)
        return
    body = _lines(error.what, error.where, error.fix)
    console.print(Panel(body, title=_title(error), border_style="red", title_align="left"))


def show_outcome(outcome: Outcome, run_dir: Path) -> None:
    """Prints how a run ended, unless it just finished."""
    console = stderr()
    if outcome.state == "interrupted":
        console.print(Text(f"Interrupted. To go on: {resume_command(run_dir)}"))
    elif outcome.error is not None:
        error = outcome.error
        where, fix = error.where, error.fix
        if error.is_defect:
            where, fix = (
                error.traceback_file,
                "this is a defect of rlhf_lightning, not of yours: please report the traceback",
            )
        text = _lines(error.what, where, fix)
        title = "defect" if error.is_defect else "the run failed"
        console.print(Panel(text, title=title, border_style="red", title_align="left") if console.is_terminal else text)


def resume_command(run_dir: Path) -> str:
    """The shell command that resumes a run."""
    here = Path.cwd()
    shown = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
    return shlex.join(["rlhf", "train", f"resume={shown}"])


def _title(error: RlhfError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip() + " error"


def _lines(what: str, where: str | None, fix: str | None) -> Text:
    text = Text(what)
    if where:
        text.append("\nwhere: ", style="bold").append(where)
    if fix:
        text.append("\nfix:   ", style="bold").append(fix)
    return text


def _problem(problem: Problem) -> Text:
    text = Text("\n").append(problem.key, style="bold").append(f": {problem.what}")
    if problem.fix:
        text.append(f"\n  {problem.fix}", style="green")
    if problem.source:
        text.append(f"\n  set by {problem.source}", style="dim")
    return text
