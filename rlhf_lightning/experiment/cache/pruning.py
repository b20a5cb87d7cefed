"""Pruning of the stage cache: entries unused for long, and those beyond its size limit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rlhf_lightning.experiment.cache.entry import Entry
from rlhf_lightning.experiment.cache.store import Store


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the stage cache.

    Attributes:
        unused_for: entries unused for longer are removed; None: no limit.
        bytes: limit on the total size, met by removing the longest unused entries; None: no limit.
        stages: whose entries are considered; None for all stages.
    """

    unused_for: timedelta | None = None
    bytes: int | None = None
    stages: Sequence[str] | None = None


def condemned(entries: Iterable[Entry], limits: Limits, now: datetime) -> list[Entry]:
    """The entries that exceed the limits, the longest unused first."""
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
    """Removes the entries that exceed the limits, and the remains of killed builders.

    Args:
        dry_run: only list what would be removed.

    Returns:
        The entries removed, and those kept because another process is using them.
    """
    chosen = condemned(store.entries(), limits, datetime.now(UTC))
    if dry_run:
        return chosen, []
    busy = [entry for entry in chosen if not store.remove(entry)]
    for left in store.abandoned():
        shutil.rmtree(left)
    return [entry for entry in chosen if entry not in busy], busy
