"""Files of records as rows that know their place, and checked records from them: malformed ones stop or count."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar, cast

from rlhf_lightning.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file or table, not yet checked.

    Attributes:
        place: the file and line (or row number), as error messages name it.
        content: the undecoded JSON line, or the fields of a table row.
    """

    place: str
    content: bytes | Fields

    def fields(self) -> Fields:
        """The row's fields.

        Raises:
            DataError: the line is not UTF-8, not JSON, or not a JSON object.
        """
        if not isinstance(self.content, bytes):
            return self.content
        try:
            fields = json.loads(self.content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"The line is not UTF-8 text: byte {error.start + 1} of it is 0x{self.content[error.start]:02x}.",
                where=self.place,
                fix="save the file as UTF-8",
            ) from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"The line is not JSON: {error.msg} at column {error.colno}.",
                where=self.place,
                fix="write one complete JSON object a line",
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"The line's JSON cannot be read: {error}.", where=self.place, fix="simplify it") from error
        if not isinstance(fields, dict):
            raise DataError(
                f"The line holds a JSON {type(fields).__name__}, not an object.",
                where=self.place,
                fix='write one JSON object a line, like {"prompt": "..."}',
            )
        return cast(Fields, fields)


def find_files(path: str | Path) -> list[Path]:
    """The record files at `path`: the file itself, or all of a directory's, sorted by name.

    Raises:
        DataError: nothing is there, or nothing of a known format.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
        if not found:
            raise DataError(
                "The directory holds no record files.",
                where=str(path),
                fix=f"put files there whose names end in {', '.join(SUFFIXES)}",
            )
        return found
    if not path.exists():
        raise DataError("The data file does not exist.", where=str(path), fix="check the path under data.*")
    if not path.name.endswith(SUFFIXES):
        raise DataError(
            f"The file's format is not known from its name {path.name!r}.",
            where=str(path),
            fix=f"use a file whose name ends in {', '.join(SUFFIXES)}",
        )
    return [path]


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of the file or directory at `path`, in order.

    Raises:
        DataError: a file is missing, unreadable, or of an unknown format. Malformed rows raise later, in `Row.fields`.
    """
    for file in find_files(path):
        if file.name.endswith(".parquet"):
            yield from _table_rows(file)
        else:
            yield from _lines(file)


def _lines(file: Path) -> Iterator[Row]:
    opener = gzip.GzipFile if file.name.endswith(".gz") else Path.open
    try:
        with cast(IO[bytes], opener(file, "rb")) as stream:
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield Row(f"{file}:{number}", content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"The file cannot be read: {error}.",
            where=str(file),
            fix="check that the file is complete and that its name tells its format (.gz only where it is compressed)",
        ) from error


def _table_rows(file: Path) -> Iterator[Row]:
    # Here and not above: it is large, and most files are no tables.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        number = 0
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}: row {number}", fields)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"The file cannot be read as parquet: {error}.",
            where=str(file),
            fix="write it again with pyarrow, pandas or datasets",
        ) from error


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
