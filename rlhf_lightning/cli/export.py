"""`rlhf export`: a model of a run as a Hugging Face directory with a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout

if TYPE_CHECKING:
    from rlhf_lightning.runs.export import Export


def main(argv: Sequence[str]) -> int:
    """Writes the directory and prints what lies there."""
    arguments = parser().parse_args(list(argv))
    # Here and not above: this import brings torch, and --help must not wait for it.
    from rlhf_lightning.runs.export import export

    target = Path(arguments.to) if arguments.to is not None else None
    show(export(Path(arguments.run), stage=arguments.stage, merge=arguments.merge, target=target), arguments.merge)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf export`."""
    arguments = argparse.ArgumentParser(prog="rlhf export", description=__doc__, allow_abbrev=False)
    arguments.add_argument("run", metavar="RUN_DIR", help="a run, such as outputs/latest")
    arguments.add_argument("--stage", help="whose model (default: the last that the run trained)")
    arguments.add_argument(
        "--merge", action="store_true", help="add an adapter to its base: a whole model, which plain Transformers opens"
    )
    arguments.add_argument(
        "--to", metavar="DIR", help="a new or empty directory (default: exported/STAGE in the run's directory)"
    )
    return arguments


def show(written: Export, asked_to_merge: bool) -> None:
    """Print the exported paths, and what else is needed to load the model."""
    console, model = stdout(), written.model
    what = {
        "whole": "The whole model",
        "merged": "The model with its adapter merged into it",
        "adapter": "The adapter",
    }[model.form]
    console.print(Text(f"{what} of stage {model.stage}: {written.directory}", style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, size in written.files.items():
        table.add_row(f"  {name}", _size(size))
    console.print(table)
    if model.form == "whole" and asked_to_merge:
        console.print(Text("It was trained as a whole: there was no adapter to merge."))
    if model.form == "adapter":
        console.print(Text(f"PEFT opens it on its base: {model.base}"), soft_wrap=True)
        if Path(str(model.base)).is_dir():
            whole = "give both away" if model.method == "prompt_tuning" else "give both away, or export with --merge"
            console.print(Text(f"The base is a directory of this machine: {whole}."))


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
