"""Progress bars of work that is not Lightning's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from rlhf_lightning.distributed import rank

Item = TypeVar("Item")


def track(items: Sequence[Item], description: str) -> Iterable[Item]:
    """The items, with a Rich progress bar on standard error where that is a terminal: one bar for all processes."""
    if not sys.stderr.isatty() or rank() > 0:
        return items
    return rich_track(items, description=description, console=Console(stderr=True), transient=True)
