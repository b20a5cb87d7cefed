"""`rlhf doctor`: is a run healthy, and if not, what is the likely cause and what to change."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.evaluation.doctor import Diagnosis, Verdict, diagnose
from rlhf_lightning.evaluation.doctor_record import Finding, RunRecord, Severity, figure
from rlhf_lightning.stages.run_directory import CONFIG, RunDirectory
from rlhf_lightning.tracking.history_file import read_history

Line = tuple[int, Text]
"""A line of a report, and by how much it is indented."""

UNHEALTHY = 3
"""The exit code where something serious was found."""
COLORS = {Severity.SERIOUS: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
BORDERS = {
    Verdict.HEALTHY: "green",
    Verdict.DOUBTFUL: "yellow",
    Verdict.UNHEALTHY: "red",
    Verdict.TOO_EARLY: "cyan",
}


class NoRunError(RunDirectoryError):
    """A directory without a run."""

    exit_code = 2


def main(argv: Sequence[str]) -> int:
    """Examines each run and prints what was found."""
    arguments = parser().parse_args(list(argv))
    runs = [run for given in arguments.runs for run in runs_in(Path(given))]
    found = [(run, read_run(run)) for run in runs]
    diagnoses = [(run, record, diagnose(record)) for run, record in found]
    if arguments.json:
        content = [as_json(run, record, diagnosis) for run, record, diagnosis in diagnoses]
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        console = stdout()
        for run, record, diagnosis in diagnoses:
            show(console, run, record, diagnosis)
    unhealthy = any(diagnosis.verdict is Verdict.UNHEALTHY for _, _, diagnosis in diagnoses)
    return UNHEALTHY if unhealthy else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf doctor`."""
    arguments = argparse.ArgumentParser(
        prog="rlhf doctor",
        description=__doc__,
        epilog="exit code: 0 nothing serious, 3 something serious, 2 no run there",
        allow_abbrev=False,
    )
    arguments.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="a run (running, finished, failed or interrupted), or a sweep's directory",
    )
    arguments.add_argument("--json", action="store_true", help="a JSON list with an object for each run")
    return arguments


def runs_in(path: Path) -> list[Path]:
    """The run that lies in a directory, or the runs of a sweep that does.

    Raises:
        NoRunError: if there is none.
    """
    if (path / CONFIG).exists():
        return [path]
    jobs = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    if not jobs:
        fix = f"name a directory with a {CONFIG}, such as outputs/latest"
        raise NoRunError("There is no run here.", where=str(path), fix=fix)
    return jobs


def read_run(path: Path) -> RunRecord:
    """Load the record of a run, finished or not.

    Raises:
        RunDirectoryError: a file of the run is malformed.
    """
    run = RunDirectory.open(path)
    status = run.status
    error = None
    if status.error is not None:
        parts = (status.error.what, status.error.where, status.error.fix)
        error = "\n".join(part for part in parts if part)
    return RunRecord(
        state=status.state,
        stage=status.stage,
        alive=psutil.pid_exists(status.pid),
        error=error,
        config=run.config,
        metrics=run.metrics or {},
        history=read_history(path),
    )


def as_json(run: Path, record: RunRecord, diagnosis: Diagnosis) -> dict[str, object]:
    """A diagnosis in plain values."""

    def plain(finding: Finding, role: str) -> dict[str, object]:
        return {**asdict(finding), "explains": sorted(finding.explains), "role": role}

    return {
        "run": str(run),
        "state": record.state,
        "verdict": diagnosis.verdict,
        "iterations": diagnosis.iterations,
        "findings": [
            *(plain(finding, "cause") for finding in diagnosis.causes),
            *(plain(finding, "consequence") for finding in diagnosis.consequences),
        ],
        "figures": {shown.name: asdict(shown) for shown in diagnosis.figures},
    }


def show(console: Console, run: Path, record: RunRecord, diagnosis: Diagnosis) -> None:
    """Prints a diagnosis: a panel on a terminal, plain lines elsewhere."""
    heading = f"{run}: {diagnosis.verdict} ({record.state}, {diagnosis.iterations} PPO iterations)"
    lines = [line for finding in diagnosis.causes for line in _cause(finding)]
    if diagnosis.consequences:
        lines += [(0, Text("Probably follows from it:", style="bold")), *map(_consequence, diagnosis.consequences)]
    if not lines:
        lines = [(0, Text(_nothing_found(diagnosis)))]
    table: list[RenderableType] = [Text(), _figures(diagnosis)] if diagnosis.figures else []
    if console.is_terminal:
        body = Group(*(Padding(text, (0, 0, 0, indent)) for indent, text in lines), *table)
        console.print(Panel(body, title=heading, border_style=BORDERS[diagnosis.verdict], title_align="left"))
        return
    console.print(Text(heading))
    for indent, text in lines:
        console.print(Text(" " * indent) + text, soft_wrap=True)
    console.print(*table, Text())


def _nothing_found(diagnosis: Diagnosis) -> str:
    if diagnosis.verdict is Verdict.TOO_EARLY:
        return "Nothing stands out, but PPO has hardly begun."
    stages = "" if diagnosis.figures else " in the stages that ran; PPO is not among them"
    return f"Nothing stands out{stages}."


def _cause(finding: Finding) -> list[Line]:
    title = Text.assemble(
        (finding.severity.upper(), f"bold {COLORS[finding.severity]}"),
        (f"  {finding.title}", "bold"),
        (f"  [{finding.name}]", "dim"),
    )
    lines = [(0, title), *((2, Text(f"- {line}")) for line in finding.evidence)]
    lines.append((2, Text(finding.explanation, style="dim")))
    if finding.overrides:
        lines.append((2, Text.assemble(("try: ", "bold"), ("  ".join(finding.overrides), "green"))))
    return lines


def _consequence(finding: Finding) -> Line:
    return 2, Text(f"- {finding.title}: {finding.evidence[0]}").append(f"  [{finding.name}]", style="dim")


def _figures(diagnosis: Diagnosis) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("looked at", style="dim")
    for column in ("first", "end", "lowest", "highest"):
        table.add_column(column, justify="right")
    for shown in diagnosis.figures:
        numbers = (shown.first, shown.end, shown.lowest, shown.highest)
        table.add_row(shown.name, *(figure(number) for number in numbers))
    return table
