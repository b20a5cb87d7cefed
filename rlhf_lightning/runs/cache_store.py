"""The directory of the stage cache: entries with their origin, published atomically, one lock per key, pruned."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_lightning.atomic import flush
from rlhf_lightning.runs.input_identity import file_hash

RECORD = "record.json"
FILES = "files"
VERSION = 2

HASHED_ON_USE = 64 * 2**20
"""Bytes. Before an entry is used, files up to this size are compared by hash, larger ones by size."""

APPENDED_TO = "*.jsonl"
"""Files that a stage appends to. They are copied, not linked: going back to a checkpoint truncates them in place."""

CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
"""Error numbers for a file that cannot be hard-linked."""


@dataclass(frozen=True)
class Record:
    """Origin of an entry, and the results of its stage beside its files.

    Attributes:
        made: time, ISO 8601.
        made_by: the directory of the run.
        seconds: duration of the stage.
        identity: of the stage.
        metrics: the stage's entry in metrics.json.
        evaluation: what it added to `evaluate` there.
        samples: rows of samples.jsonl; empty except for a stage that evaluates.
        history: its lines of history.csv.
        files: path below `files/` -> size in bytes and SHA-256.
    """

    stage: str
    key: str
    made: str
    made_by: str
    seconds: float
    identity: dict[str, Any]
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
        used: time of the last use by a run, or of its making.
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
        """Sets the time of the last use to now."""
        os.utime(self.path / RECORD)

    def flaws(self, hash_up_to: float = HASHED_ON_USE) -> list[str]:
        """Descriptions of what is wrong with its files; empty if they are intact.

        Args:
            hash_up_to: larger files, in bytes, are compared by size only.
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

    def copy_into(self, directory: Path) -> None:
        """Links or copies the entry's files into a directory."""
        for name in self.record.files:
            source, target = self.path / FILES / name, directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)


def write_entry(path: Path, record: Record, source: Path) -> None:
    """Writes an entry into a new directory and flushes it to disk.

    Args:
        record: without its files.
        source: the directory that the stage left.

    Raises:
        OSError: the entry cannot be written.
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
    """Hard-links a file; copies it where the filesystem has no links, or where the file will be appended to."""
    if source.match(APPENDED_TO):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(source, target)


def origin(record: Record) -> Mapping[str, Any]:
    """Origin of a stage that was taken from the cache, for its entry in metrics.json."""
    return {"made_by": record.made_by, "made": record.made, "seconds": record.seconds}


logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REMIND_SECONDS = 300.0
"""Interval between log lines of a process that waits for an entry."""

UNREADABLE = (OSError, ValueError, TypeError, KeyError)
"""Exceptions that reading a damaged record raises."""


class Store:
    """One entry per `DIRECTORY/STAGE/KEY/`. Names with a leading dot are locks, unfinished or broken entries."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def place(self, stage: str, key: str) -> Path:
        """Path of an entry, whether or not it exists."""
        return self.directory / stage / key

    def entries(self) -> Iterator[Entry]:
        """All entries that can be read, stage by stage."""
        for path in sorted(self.directory.glob("[!.]*/[!.]*")):
            with contextlib.suppress(*UNREADABLE):
                yield Entry.read(path)

    def leftovers(self) -> list[Path]:
        """Remains of killed builders, and entries set aside as unusable."""
        found = [path for why in ("part", "broken") for path in sorted(self.directory.glob(f"[!.]*/.*.{why}"))]
        return [path for path in found if not self._is_held(path.parent.name, path.name.split(".")[1])]

    def sound(self, stage: str, key: str, *, repair: bool) -> Entry | None:
        """The entry of a key after a check of its files; None if there is none that can be used.

        Args:
            repair: move an unusable entry out of the way. The caller must hold its lock.
        """
        path = self.place(stage, key)
        if not path.exists():
            return None
        try:
            entry = Entry.read(path)
            flaws = entry.flaws()
        except UNREADABLE as error:
            flaws = [f"its record cannot be read ({type(error).__name__})"]
        else:
            if not flaws:
                return entry
        logger.warning("The cache's entry %s is not used: %s.", path, "; ".join(flaws))
        if repair:
            path.rename(self._aside(path, "broken"))
        return None

    def publish(self, record: Record, source: Path) -> None:
        """Publishes a stage's entry under its key atomically, in the place of an earlier one.

        The caller must hold the lock.

        Raises:
            OSError: the entry cannot be written.
        """
        path = self.place(record.stage, record.key)
        aside = self._aside(path, "part")
        try:
            aside.mkdir(parents=True)
            write_entry(aside, record, source)
            replaced = self._aside(path, "part")
            if path.exists():
                path.rename(replaced)
            aside.rename(path)
            flush([path.parent])
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def remove(self, entry: Entry) -> bool:
        """Removes an entry; False if another process is building or reading it."""
        lock = self._lock(entry.record.stage, entry.record.key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            aside = self._aside(entry.path, "part")
            entry.path.rename(aside)
            shutil.rmtree(aside)
        finally:
            lock.release()
        return True

    @contextlib.contextmanager
    def held(self, stage: str, key: str, run: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
        """Lock that keeps other processes from building, reading or removing an entry within a `with` block.

        The operating system releases it when the process that holds it ends, however it ends.

        Args:
            run: directory of the run that builds the entry, which waiting processes log.
            while_waiting: called regularly.

        Raises:
            OSError: the cache's directory cannot be written.
        """
        (self.directory / stage).mkdir(parents=True, exist_ok=True)
        lock = self._lock(stage, key)
        self._acquire(lock, stage, key, while_waiting)
        holder = self._holder(stage, key)
        try:
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "run": str(run)}))
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def _is_held(self, stage: str, key: str) -> bool:
        lock = self._lock(stage, key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _acquire(self, lock: FileLock, stage: str, key: str, while_waiting: Callable[[], None]) -> None:
        reminded = -REMIND_SECONDS
        while True:
            try:
                lock.acquire(timeout=0)
                return
            except Timeout:
                if time.monotonic() - reminded >= REMIND_SECONDS:
                    reminded = time.monotonic()
                    logger.info(
                        "Stage %s: waiting for %s, which is at it (%s).", stage, self._who(stage, key), key[:12]
                    )
                while_waiting()
                time.sleep(POLL_SECONDS)

    def _who(self, stage: str, key: str) -> str:
        try:
            holder = json.loads(self._holder(stage, key).read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} of run {holder['run']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def _lock(self, stage: str, key: str) -> FileLock:
        return FileLock(self.directory / stage / f".{key}.lock")

    def _holder(self, stage: str, key: str) -> Path:
        return self.directory / stage / f".{key}.holder"

    def _aside(self, path: Path, why: str) -> Path:
        return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.{why}")


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


def entries_to_prune(entries: Iterable[Entry], limits: Limits, now: datetime) -> list[Entry]:
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
    chosen = entries_to_prune(store.entries(), limits, datetime.now(UTC))
    if dry_run:
        return chosen, []
    busy = [entry for entry in chosen if not store.remove(entry)]
    for left in store.leftovers():
        shutil.rmtree(left)
    return [entry for entry in chosen if entry not in busy], busy
