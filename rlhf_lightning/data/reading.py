"""From rows to checked records: what is malformed stops the run or is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from rlhf_lightning.data.rows import Fields, Row
from rlhf_lightning.errors import DataError

logger = logging.getLogger(__name__)

REASONS_KEPT = 5

Parsed = TypeVar("Parsed")


class ReadingRules(Protocol):
    """Rules for reading records; `RecordedData` has them.

    Attributes:
        on_bad_record: whether a malformed record stops the run, or is left out and counted.
        max_records: read so many at most; None: all.
    """

    @property
    def on_bad_record(self) -> Literal["error", "skip"]: ...

    @property
    def max_records(self) -> int | None: ...


@dataclass(slots=True)
class ReadReport:
    """Counts of the records read and skipped.

    Attributes:
        read: records that were read and are well formed.
        skipped: malformed records that were left out (`data.on_bad_record=skip`).
        duplicates: well-formed records that are equal to an earlier one of their file; they are kept, since two
            annotators may agree.
        reasons: place and reason of the first few records that were skipped.
    """

    read: int = 0
    skipped: int = 0
    duplicates: int = 0
    reasons: list[str] = field(default_factory=list)

    def skip(self, error: DataError) -> None:
        """Counts a malformed record."""
        self.skipped += 1
        if len(self.reasons) < REASONS_KEPT:
            self.reasons.append(f"{error.where}: {error.what}")


def read_records(
    origin: str,
    found: Iterable[Row],
    parse: Callable[[Fields, str], Parsed],
    settings: ReadingRules,
    report: ReadReport,
) -> list[Parsed]:
    """The checked records of the rows, at most `settings.max_records` of them, in order.

    Args:
        origin: the file, directory or dataset, for error messages.
        found: its rows.
        parse: makes a record of a row's fields and its place.
        settings: what to do about malformed records.
        report: to which the counts are added.

    Raises:
        DataError: a record is malformed and `settings.on_bad_record` is `error`, or no record is left.
    """
    records: list[Parsed] = []
    before = report.skipped
    for row in found:
        if len(records) == settings.max_records:
            break
        try:
            records.append(parse(row.fields(), row.place))
        except DataError as error:
            if settings.on_bad_record == "error":
                raise
            report.skip(error)
    if skipped := report.skipped - before:
        logger.warning("%s: %d malformed records were skipped; the first: %s", origin, skipped, report.reasons[0])
    if not records:
        raise DataError(
            f"There are no records: all {skipped} are malformed." if skipped else "There are no records.",
            where=origin,
            fix="give data with at least one well-formed record",
        )
    report.read += len(records)
    report.duplicates += len(records) - len(set(records))
    return records
