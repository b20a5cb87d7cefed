"""The sample table: the same prompts, answered before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from rlhf_lightning.errors import RunDirectoryError

SAMPLES_FILE = "samples.jsonl"
SHOWN = 200
"""Characters of a prompt or reply that the terminal's table shows; the file has all of them."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One prompt and the replies of two policies.

    Attributes:
        split: which prompts it was drawn from.
        prompt: as readable text.
        proxy_before, proxy_after: what the reward under training says; None where there is none.
        gold_before, gold_after: what is truly good; None outside the courtesy world.
    """

    split: str
    prompt: str
    before: str
    after: str
    proxy_before: float | None = None
    proxy_after: float | None = None
    gold_before: float | None = None
    gold_after: float | None = None


def write_samples(rows: Iterable[SampleRow], path: Path) -> None:
    """Write the rows as JSON lines, replacing what was there."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_samples(run_dir: Path) -> list[SampleRow]:
    """The rows that a run left; none where it left no file.

    Raises:
        RunDirectoryError: a line is no such row.
    """
    path = run_dir / SAMPLES_FILE
    if not path.exists():
        return []
    # Not splitlines(): a reply may hold one of Unicode's other line ends, which JSON leaves as they are.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _row(path: Path, number: int, line: str) -> SampleRow:
    try:
        return SampleRow(**json.loads(line))
    except (ValueError, TypeError) as error:
        what, fix = f"The samples cannot be read: {error}.", "restore the line, or delete it"
        raise RunDirectoryError(what, where=f"{path}, line {number}", fix=fix) from error


def render_samples(
    rows: Sequence[SampleRow], before: str, after: str, title: str = "Same prompts, two policies"
) -> Table:
    """The rows as a Rich table.

    Args:
        before: the name of the policy that `SampleRow.before` comes from.
        after: likewise for `SampleRow.after`.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    proxy = any(row.proxy_before is not None or row.proxy_after is not None for row in rows)
    gold = any(row.gold_before is not None or row.gold_after is not None for row in rows)
    for header in ("prompt", before, after):
        table.add_column(header, ratio=1, overflow="fold")
    for name, shown in (("proxy", proxy), ("gold", gold)):
        if shown:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(_end_of(row.prompt), style="bold"), Text(_start_of(row.before)), Text(_start_of(row.after))]
        if proxy:
            cells.append(_change(row.proxy_before, row.proxy_after))
        if gold:
            cells.append(_change(row.gold_before, row.gold_after))
        table.add_row(*cells)
    return table


def _end_of(text: str) -> str:
    """The last `SHOWN` characters: of a long conversation, what is answered."""
    return text if len(text) <= SHOWN else f"… {text[-SHOWN:]}"


def _start_of(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def _change(before: float | None, after: float | None) -> Text:
    """`-0.60 → +1.30`, green where it rose and red where it fell."""
    text = " → ".join("?" if value is None else f"{value:+.2f}" for value in (before, after))
    if before is None or after is None or before == after:
        return Text(text)
    return Text(text, style="green" if after > before else "red")
