"""The directory of the stage cache: finished entries, published atomically, and one lock per key."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_lightning.experiment.cache.entry import Entry, Record, flush, write_entry

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

    def abandoned(self) -> list[Path]:
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
