"""One entry of the stage cache: what a stage left, and the record of how it came about."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.provenance.hashes import file_hash
from rlhf_lightning.settings.run import StageName

RECORD = "record.json"
FILES = "files"
VERSION = 1

HASHED_ON_USE = 64 * 2**20
"""Files of up to so many bytes are read and compared with their hash before an entry is used; larger ones by size."""

APPENDED_TO = "*.jsonl"
"""Files that a stage appends to. They are copied: what goes back to a checkpoint cuts its own in place."""

CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
"""What the operating system says where a file cannot have a second name."""


@dataclass(frozen=True)
class Record:
    """How an entry came about, and what a run writes down of a stage beside its files.

    Attributes:
        made: when, ISO 8601.
        made_by: the directory of the run.
        seconds: what the stage took.
        ingredients: of the key.
        metrics: the stage's entry in metrics.json.
        evaluation: what it added to `evaluate` there.
        samples: rows of samples.jsonl; empty but of a stage that evaluates.
        history: its lines of history.csv.
        files: path below `files/` -> size in bytes and SHA-256.
    """

    stage: StageName
    key: str
    made: str
    made_by: str
    seconds: float
    ingredients: dict[str, Any]
    metrics: dict[str, Any]
    objective: float | None
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    history: str
    files: dict[str, dict[str, Any]]
    version: int = VERSION

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(int(file["size"]) for file in self.files.values())


@dataclass(frozen=True)
class Entry:
    """A finished entry.

    Attributes:
        used: when a run took it last, or when it was made.
    """

    path: Path
    record: Record
    used: datetime

    @classmethod
    def read(cls, path: Path) -> Entry:
        """The entry in a directory.

        Raises:
            OSError, ValueError, TypeError, KeyError: it has no record, or one that cannot be read.
        """
        content = json.loads((path / RECORD).read_text(encoding="utf-8"))
        record = Record(**content)
        if record.version != VERSION or (record.stage, record.key) != (path.parent.name, path.name):
            raise ValueError("its record is not that of this place")
        return cls(path, record, datetime.fromtimestamp((path / RECORD).stat().st_mtime, UTC))

    def mark_used(self) -> None:
        """Notes that a run takes it now."""
        os.utime(self.path / RECORD)

    def flaws(self, hash_up_to: float = HASHED_ON_USE) -> list[str]:
        """What is wrong with its files, in words.

        Args:
            hash_up_to: files of more bytes are judged by their size.
        """
        found = []
        for name, expected in self.record.files.items():
            path = self.path / FILES / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif path.stat().st_size != expected["size"]:
                found.append(f"{name} has {path.stat().st_size} bytes and not {expected['size']}")
            elif expected["size"] <= hash_up_to and file_hash(path) != expected["sha256"]:
                found.append(f"{name} was changed")
        return found

    def put_into(self, directory: Path) -> None:
        """Gives a directory the entry's files."""
        for name in self.record.files:
            source, target = self.path / FILES / name, directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)


def write_entry(path: Path, record: Record, source: Path) -> None:
    """Fills a new directory with an entry and has all of it outlast a power failure.

    Args:
        record: without its files.
        source: the directory that the stage left.

    Raises:
        OSError: the disk would not take it.
    """
    files = {}
    for name in sorted(str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()):
        target = path / FILES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, target)
        target.chmod(target.stat().st_mode & ~0o222)
        files[name] = {"size": target.stat().st_size, "sha256": file_hash(target)}
    content = {**asdict(record), "files": files}
    (path / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    flush(path.rglob("*"))
    flush([path])


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; a copy of it where the filesystem has none, or where the file will be appended to."""
    if source.match(APPENDED_TO):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(source, target)


def flush(paths: Iterable[Path]) -> None:
    """Makes files and directories outlast a power failure."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def origin(record: Record) -> Mapping[str, Any]:
    """Where a stage came from, as metrics.json says it of a stage that was taken from the cache."""
    return {"made_by": record.made_by, "made": record.made, "seconds": record.seconds}
