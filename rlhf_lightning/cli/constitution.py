"""`rlhf constitution`: which there are, their principles, what models are asked under them, and whom they suit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.cli.constitution_matrix import add_arguments, show_matrix
from rlhf_lightning.cli.constitution_prompts import FORMS, prompts
from rlhf_lightning.constitutions.identity import content_hash
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.experiment.config.compose import conf_directory
from rlhf_lightning.experiment.config.constitution import ConstitutionFiles, load_constitution
from rlhf_lightning.experiment.config.suggestions import did_you_mean, similar
from rlhf_lightning.settings.constitution import ConstitutionSettings, Principle

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
