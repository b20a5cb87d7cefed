"""`rlhf constitution`: list, principles, the exact prompts they give, whom they suit, and the matrix of policies."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.comparison.constitution_matrix import Matrix, Scorer, constitution_matrix, scorer_of, write_csv
from rlhf_lightning.comparison.differing_settings import comma_separated
from rlhf_lightning.comparison.records import Metric
from rlhf_lightning.comparison.tables import mean_cell
from rlhf_lightning.constitutions.identity import content_hash
from rlhf_lightning.constitutions.rendering import EnglishPhrasing, JudgePrompt, Phrasing, as_turns
from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle
from rlhf_lightning.data.formats import as_plain_text
from rlhf_lightning.errors import ComparisonError, ConfigError, Problem, did_you_mean, similar
from rlhf_lightning.records import Conversation, Message, Prompt
from rlhf_lightning.runs.compose import conf_directory
from rlhf_lightning.runs.constitution import ConstitutionFiles, load_constitution
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing

FORMS = {
    "chat": "messages for a model with a chat template",
    "plain": "text for a model without one, with examples",
    "world": "turns in the courtesy world's words",
}


@dataclass(frozen=True)
class Example:
    """A prompt, two responses to it, and what a model said of the first one."""

    prompt: Prompt
    responses: tuple[str, str]
    critique: str


IN_ENGLISH = Example(
    Prompt("How do I keep the birds off my cherries?"),
    ("Hang a net over the tree before they ripen.", "Birds are animals, and cherries are fruit."),
    "<what the model answered>",
)
IN_THE_WORLD = Example(
    Prompt("how do i paint the chair ?"),
    ("listen idiot you can paint the chair with care and time", "gladly my friend i do not know that"),
    "<what the model answered>",
)


def prompts(principle: Principle, form: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the full text of each of the four prompts of a principle.

    Args:
        principle: in the form `world`, one that has a name there.
        form: one of `FORMS`.
    """
    example = IN_THE_WORLD if form == "world" else IN_ENGLISH
    phrasing: Phrasing = CourtesyPhrasing() if form == "world" else EnglishPhrasing(fewshots=form == "plain")
    first, second = example.responses
    dialogue = (*as_turns(example.prompt), Message("assistant", first))
    asked: dict[str, Conversation | JudgePrompt] = {
        "critique": phrasing.critique(principle, dialogue),
        "revision": phrasing.revision(principle, dialogue, example.critique),
        "judge.mode=pairwise": phrasing.pairwise(principle, example.prompt, first, second, reasons=False),
        "judge.mode=pointwise": phrasing.pointwise(principle, example.prompt, first, reasons=False),
    }
    for name, one in asked.items():
        yield name, _text(one, form)


def _text(asked: Conversation | JudgePrompt, form: str) -> str:
    turns, opening = (asked.turns, asked.opening) if isinstance(asked, JudgePrompt) else (asked, "")
    if form == "plain":
        return f"{as_plain_text(turns)} {opening}" if opening else as_plain_text(turns)
    lines = [_turn(turn.role, turn.content) for turn in turns]
    return "\n".join([*lines, _turn("assistant", f"{opening}..." if opening else "...")])


def _turn(role: str, content: str) -> str:
    first, *rest = content.splitlines() or [""]
    return "\n".join([f"{role + ':':<11}{first}", *(f"{'':<11}{line}".rstrip() for line in rest)])


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
    arguments.add_argument("--policy", help="whose responses, e.g. revision_sft (default: the policy evaluated last)")
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
    from rlhf_lightning.evaluation.plots.bars import satisfaction_heatmap

    means = {place: cell.mean for place, cell in matrix.cells.items()}
    halves = {place: cell.high - cell.mean for place, cell in matrix.cells.items() if cell.high is not None}
    try:
        return satisfaction_heatmap(matrix.rows, matrix.columns, means, halves, path, note)
    except OSError as error:
        what = f"The picture cannot be written: {error.strerror or error}."
        raise ComparisonError(what, where=str(path), fix="choose another place: --png FILE") from error


ONLY_A_PATH = "file"
"""The option for a file of the user's own; not a constitution itself."""


def main(argv: Sequence[str]) -> int:
    """Lists constitutions, shows one, or scores policies by them."""
    arguments = parser().parse_args(list(argv))
    folders = [conf_directory()]
    if arguments.config_dir:
        own = Path(arguments.config_dir)
        if not own.is_dir():
            raise ConfigError([Problem("--config-dir", f"{own} is not a directory", fix="name an existing folder")])
        folders = [own.resolve(), *folders]
    arguments.do(folders, arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf constitution`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own, with constitution/NAME.yaml")
    arguments = argparse.ArgumentParser(prog="rlhf constitution", description=__doc__, allow_abbrev=False)
    commands = arguments.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", parents=[shared], help="a table of what there is")
    listing.set_defaults(do=_list)
    showing = commands.add_parser("show", parents=[shared], help="its principles, and the prompts that they become")
    showing.add_argument("name", metavar="NAME_OR_PATH", help="an option of the group, or a file of your own")
    showing.add_argument("--principle", metavar="ID", help="the one whose prompts are shown (default: the first)")
    forms = "; ".join(f"{form}: {words}" for form, words in FORMS.items())
    showing.add_argument("--prompts", choices=FORMS, help=f"{forms} (default: all three)")
    showing.set_defaults(do=_show)
    scoring = commands.add_parser("matrix", parents=[shared], help="policies of a sweep, scored by each constitution")
    add_arguments(scoring)
    scoring.set_defaults(do=show_matrix)
    return arguments


def _list(folders: Sequence[Path], _: argparse.Namespace) -> None:
    files = ConstitutionFiles(folders)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "principles", "hash", "about"):
        table.add_column(column, justify="right" if column == "principles" else "left", no_wrap=column != "about")
    for name in files.names():
        if name == ONLY_A_PATH:
            continue
        about = Text(_about(files.path_of(name)), overflow="fold")
        try:
            constitution = load_constitution(name, folders)
        except ConfigError as error:
            count = len(error.problems)
            table.add_row(name, "", f"{count} problem{'s' if count != 1 else ''}", about)
        else:
            table.add_row(name, str(len(constitution.principles)), content_hash(constitution), about)
    stdout().print(table)


def _show(folders: Sequence[Path], arguments: argparse.Namespace) -> None:
    constitution = load_constitution(arguments.name, folders)
    principles = constitution.principles
    shown = principles[0] if principles else None
    if arguments.principle is not None:
        shown = next((one for one in principles if one.id == arguments.principle), None)
        if shown is None:
            ids = [one.id for one in principles]
            fix = did_you_mean(similar(arguments.principle, ids)) or f"there are: {', '.join(ids) or 'none'}"
            raise ConfigError([Problem("--principle", f"there is no principle {arguments.principle!r}", fix=fix)])
    console = stdout()
    _show_method(console, constitution)
    for principle in principles:
        _show_principle(console, constitution, principle)
    if shown is not None:
        for form in [arguments.prompts] if arguments.prompts else FORMS:
            _show_prompts(console, shown, form)


def _show_method(console: Console, constitution: ConstitutionSettings) -> None:
    """The name of a constitution, its hash, and how its principles are sampled."""
    heading = f"{constitution.name}, version {constitution.version}, hash {content_hash(constitution)}"
    console.print(Text(heading, style="bold"), soft_wrap=True)
    sampling = constitution.sampling
    steps = f"{constitution.revisions} times {'critique and revision' if constitution.critique else 'revision'}"
    drawn = f"principles {sampling.mode} per {sampling.per}"
    learnt = f"trained on {constitution.train_on}, {constitution.mix_helpful:g} helpful samples per revision"
    console.print(Text(f"{steps}; {drawn}; {learnt}"), soft_wrap=True)


def _show_principle(console: Console, constitution: ConstitutionSettings, principle: Principle) -> None:
    share = principle.weight / sum(one.weight for one in constitution.principles)
    kinds = ", ".join(principle.applies_to) if principle.applies_to else "all prompts"
    world = principle.world.tag if principle.world else "no name"
    console.print(Text(f"\n{principle.id}: {principle.title}", style="bold"), soft_wrap=True)
    rows = {
        "weight": f"{share:.1%}, on {kinds}; in the courtesy world: {world}",
        "critique": principle.critique_request,
        "revision": principle.revision_request,
        "pairwise": principle.preference_question,
        "pointwise": principle.pointwise_question,
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(f"  {name}", Text(text))
    console.print(table)


def _show_prompts(console: Console, principle: Principle, form: str) -> None:
    console.print(Text(f"\n{principle.id} as {FORMS[form]}", style="bold"), soft_wrap=True)
    if form == "world" and principle.world is None:
        console.print(Text("\nIt has no name there."), soft_wrap=True)
        return
    for name, text in prompts(principle, form):
        console.print(Text(f"\n--- {name}"), soft_wrap=True)
        console.print(Text(text), soft_wrap=True)


def _about(path: Path | None) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    return " ".join(comments).partition(". ")[0].rstrip(".")
