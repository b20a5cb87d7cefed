"""`rlhf constitution matrix`: policies trained under some constitutions, each scored by the others."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.comparison.cells import mean_cell
from rlhf_lightning.comparison.constitution_matrix import (
    Matrix,
    Scorer,
    constitution_matrix,
    scorer_of,
    write_csv,
)
from rlhf_lightning.comparison.differing import comma_separated
from rlhf_lightning.comparison.records import Metric
from rlhf_lightning.errors import ComparisonError
from rlhf_lightning.experiment.config.constitution import load_constitution

SATISFACTION = Metric("satisfaction", "satisfaction", True, "percent")
LABEL = "trained under"
CELL_WIDTH = 15
"""Characters of a column, with the space beside it."""
EPILOG = """\
examples:
  rlhf constitution matrix outputs/latest
  rlhf constitution matrix outputs/latest --policy revision_sft --also harmless,mine.yaml --png matrix.png

exit code: 0 shown, 2 no run, no such constitution or no figures there
"""


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rlhf constitution matrix`."""
    arguments.description = __doc__
    arguments.epilog = EPILOG
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("directory", metavar="DIR", help="a sweep over constitutions, or a folder that holds runs")
    arguments.add_argument("--split", default="iid", help="the prompts replied to (default: %(default)s)")
    arguments.add_argument("--policy", help="whose replies, e.g. revision_sft (default: the policy evaluated last)")
    arguments.add_argument(
        "--also", metavar="NAMES", help="score by these too: constitutions by name or file: harmless,mine.yaml"
    )
    arguments.add_argument("--csv", metavar="FILE", help="write the cells as CSV")
    arguments.add_argument("--png", metavar="FILE", help="draw the matrix")


def show_matrix(folders: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Prints the matrix and writes it where asked.

    Args:
        folders: config folders, where constitutions are found by name.
    """
    further = [scorer(name, folders) for name in comma_separated(arguments.also)] if arguments.also else []
    matrix = constitution_matrix(Path(arguments.directory), arguments.split, arguments.policy, further)
    console = stdout()
    whose = arguments.policy or "the policy evaluated last"
    console.print(Text(f"Satisfaction of constitutions by {whose}, on {arguments.split}", style="bold"))
    for table in tables(matrix, console):
        console.print(table)
    for note in matrix.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    written = []
    if arguments.csv:
        written.append(write_csv(matrix, Path(arguments.csv)))
    if arguments.png:
        written.append(draw(matrix, Path(arguments.png), f"{whose}, {arguments.split}"))
    if written:
        console.print(Text(f"written: {', '.join(map(str, written))}"), soft_wrap=True)


def scorer(name: str, folders: Sequence[Path]) -> Scorer:
    """A constitution by the name of an option, or by its file.

    Raises:
        ConfigError: there is none, or with all that is wrong with it.
    """
    constitution = load_constitution(name, folders)
    return scorer_of(constitution.name, [principle.model_dump() for principle in constitution.principles])


def tables(matrix: Matrix, console: Console) -> Iterator[Table]:
    """The matrix as tables: as many columns beside each other as fit."""
    label = max(len(name) for name in (LABEL, *matrix.rows)) + 3
    beside = max(1, (console.width - label) // CELL_WIDTH)
    for start in range(0, len(matrix.columns), beside):
        columns = matrix.columns[start : start + beside]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(LABEL, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        for row in matrix.rows:
            cells = (mean_cell(matrix.cells.get((row, column)), SATISFACTION) for column in columns)
            own = ("bold" if row == column else "" for column in columns)
            table.add_row(row, *(Text(cell, style=style) for cell, style in zip(cells, own, strict=True)))
        yield table


def draw(matrix: Matrix, path: Path, note: str) -> Path:
    """The matrix as a picture.

    Raises:
        ComparisonError: it cannot be written.
    """
    from rlhf_lightning.evaluation.plots.satisfaction_heatmap import satisfaction_heatmap

    means = {place: cell.mean for place, cell in matrix.cells.items()}
    halves = {place: cell.high - cell.mean for place, cell in matrix.cells.items() if cell.high is not None}
    try:
        return satisfaction_heatmap(matrix.rows, matrix.columns, means, halves, path, note)
    except OSError as error:
        what = f"The picture cannot be written: {error.strerror or error}."
        raise ComparisonError(what, where=str(path), fix="choose another place: --png FILE") from error
