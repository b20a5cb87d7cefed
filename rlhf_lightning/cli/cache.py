"""`rlhf cache`: finished stages that later runs take instead of running them: list, show, prune."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.errors import CacheError
from rlhf_lightning.runs.cache_store import FILES, Entry, Limits, Store, prune

DIRECTORY = "outputs/cache"
SHOWN_DIGITS = 12
"""Digits of a key in a table; any that tell it apart from the others name it."""

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
PERIODS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def main(argv: Sequence[str]) -> int:
    """Lists, shows or prunes."""
    arguments = parser().parse_args(list(argv))
    directory = Path(arguments.directory)
    if not directory.is_dir():
        fix = "name it with --directory; a run's is cache.directory in its config.yaml"
        raise CacheError("There is no stage cache here.", where=str(directory.absolute()), fix=fix)
    arguments.do(Store(directory), arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf cache`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--directory", metavar="DIR", default=DIRECTORY, help="the cache (default: %(default)s)")
    arguments = argparse.ArgumentParser(prog="rlhf cache", description=__doc__, allow_abbrev=False)
    commands = arguments.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", parents=[shared], help="a table of what is there")
    listing.set_defaults(do=_list)
    showing = commands.add_parser("show", parents=[shared], help="one entry: what its key is made of, and its files")
    showing.add_argument("key", metavar="KEY", help="the key, or its first digits")
    showing.set_defaults(do=_show)
    pruning = commands.add_parser(
        "prune",
        parents=[shared],
        help="remove what is old, or too much",
        description="Removes entries, and what killed runs have left half-built. What a run is building or taking just "
        "now stays. Files that run directories share with the cache stay there, and take up their room.",
    )
    pruning.add_argument("--older-than", metavar="AGE", type=age, help="not used for so long: 30d, 12h, 2w")
    pruning.add_argument("--max-size", metavar="SIZE", type=size, help="the longest unused, down to this: 10GB, 500MB")
    pruning.add_argument("--stage", action="append", help="of this stage only (may be repeated)")
    pruning.add_argument("--dry-run", action="store_true", help="only say what would go")
    pruning.set_defaults(do=_prune)
    return arguments


def age(text: str) -> timedelta:
    """A time as people write it: `30d`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90m, 12h, 30d or 2w")
    return int(match[1]) * PERIODS[match[2]]


def size(text: str) -> int:
    """Bytes as people write them: `10GB`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?B)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500MB or 10GB")
    return round(float(match[1]) * UNITS[match[2]])


def _list(store: Store, _: argparse.Namespace) -> None:
    entries = list(store.entries())
    console = stdout()
    console.print(_table(entries))
    total = sum(entry.record.bytes for entry in entries)
    console.print(Text(f"{_count(entries)}, {format_bytes(total)}, in {store.directory}"), soft_wrap=True)


def _show(store: Store, arguments: argparse.Namespace) -> None:
    console, entry = stdout(), _found(store, arguments.key)
    record = entry.record
    flaws = entry.flaws(hash_up_to=math.inf)
    console.print(Text(f"Stage {record.stage}, key {record.key}", style="bold"), soft_wrap=True)
    facts = {
        "made": f"{_when(datetime.fromisoformat(record.made))} by {record.made_by}, in {record.seconds:.0f} s",
        "used": _when(entry.used),
        "files": str(entry.path / FILES),
        "whole": f"no: {'; '.join(flaws)}" if flaws else "yes: each file has the hash that it was put here with",
    }
    console.print(_pairs(facts))
    for heading, content in record.identity.items():
        if isinstance(content, dict) and content:
            console.print(Text(f"\n{heading}", style="bold"))
            console.print(_pairs(content))
    console.print(Text("\nfiles", style="bold"))
    console.print(
        _pairs({name: f"{format_bytes(file['size'])}  {file['sha256']}" for name, file in record.files.items()})
    )


def _prune(store: Store, arguments: argparse.Namespace) -> None:
    console = stdout()
    limits = Limits(arguments.older_than, arguments.max_size, arguments.stage)
    gone, busy = prune(store, limits, dry_run=arguments.dry_run)
    if gone:
        console.print(_table(gone))
    said = "would go" if arguments.dry_run else "removed"
    total = format_bytes(sum(entry.record.bytes for entry in gone))
    console.print(Text(f"{_count(gone)} {said}, {total}."))
    for entry in busy:
        console.print(Text(f"{entry.record.stage} {entry.record.key[:SHOWN_DIGITS]} stays: a run is at it."))
    if arguments.older_than is None and arguments.max_size is None:
        console.print(Text("Whole entries go with --older-than or --max-size (--older-than 0d: all)."))


def _found(store: Store, prefix: str) -> Entry:
    """The one entry whose key begins so.

    Raises:
        CacheError: there is none, or several.
    """
    found = [entry for entry in store.entries() if entry.record.key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    named = ", ".join(f"{entry.record.stage} {entry.record.key[:SHOWN_DIGITS]}" for entry in found)
    what = f"{len(found)} keys begin with {prefix!r}: {named}." if found else f"No key begins with {prefix!r}."
    raise CacheError(what, where=str(store.directory), fix="rlhf cache list shows all of them")


def _table(entries: Iterable[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "key", "size", "made", "took", "used", "made by"):
        table.add_column(name, justify="right" if name in ("size", "took") else "left", no_wrap=name != "made by")
    for entry in entries:
        record = entry.record
        table.add_row(
            record.stage,
            record.key[:SHOWN_DIGITS],
            format_bytes(record.bytes),
            _when(datetime.fromisoformat(record.made)),
            f"{record.seconds:.0f} s",
            _when(entry.used),
            Text(_from_here(record.made_by), overflow="fold"),
        )
    return table


def _pairs(content: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in content.items():
        lines = value if isinstance(value, list) and value else [value]
        table.add_row(f"  {name}", Text("\n".join(map(str, lines))))
    return table


def _count(entries: Sequence[Entry]) -> str:
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"


def _from_here(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _when(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def format_bytes(count: int) -> str:
    """Bytes as people read them."""
    unit = next((unit for unit, factor in reversed(UNITS.items()) if count >= factor), "B")
    return f"{count / UNITS[unit]:.3g} {unit}"
