"""What of the stage cache goes: what nobody has used for long, and what is over its size."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rlhf_lightning.experiment.cache.entry import Entry
from rlhf_lightning.experiment.cache.store import Store


@dataclass(frozen=True, slots=True)
class Limits:
    """What may stay.

    Attributes:
        unused_for: an entry that nobody took for longer goes; None keeps all.
        bytes: while all entries together are larger, the one that nobody took for longest goes; None keeps all.
        stages: whose entries are looked at; None for all stages.
    """

    unused_for: timedelta | None = None
    bytes: int | None = None
    stages: Sequence[str] | None = None


def condemned(entries: Iterable[Entry], limits: Limits, now: datetime) -> list[Entry]:
    """The entries that the limits leave no room for, the longest unused first."""
    found = [entry for entry in entries if limits.stages is None or entry.record.stage in limits.stages]
    oldest_first = sorted(found, key=lambda entry: entry.used)
    total = sum(entry.record.bytes for entry in oldest_first)
    gone = []
    for entry in oldest_first:
        too_old = limits.unused_for is not None and now - entry.used >= limits.unused_for
        if too_old or (limits.bytes is not None and total > limits.bytes):
            gone.append(entry)
            total -= entry.record.bytes
    return gone


def prune(store: Store, limits: Limits, *, dry_run: bool) -> tuple[list[Entry], list[Entry]]:
    """Removes what the limits leave no room for, and what killed builders have left.

    Args:
        dry_run: only say what would go.

    Returns:
        The entries that went, and those that stayed because somebody is at them.
    """
    chosen = condemned(store.entries(), limits, datetime.now(UTC))
    if dry_run:
        return chosen, []
    busy = [entry for entry in chosen if not store.remove(entry)]
    for left in store.abandoned():
        shutil.rmtree(left)
    return [entry for entry in chosen if entry not in busy], busy
