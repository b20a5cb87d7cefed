"""Find the newest readable checkpoint of a stage, and refuse files that could run code."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lightning.errors import CheckpointError

logger = logging.getLogger(__name__)

SUFFIX = ".ckpt"
OURS = "resume"
"""Checkpoint key of the state that Lightning does not save."""

BARE_PICKLE = b"\x80"
"""First byte of a pickle outside an archive; `torch.save` writes archives, so no checkpoint of ours starts with it."""


@dataclass(frozen=True, slots=True)
class Readable:
    """A checkpoint that can be loaded.

    Attributes:
        journals: the lengths of the stage's journals when it was written (see `Journals`).
    """

    path: Path
    journals: Mapping[str, int]


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints of a stage, the newest first."""
    return sorted(directory.glob(f"*=*{SUFFIX}"), key=lambda path: int(path.stem.partition("=")[2]), reverse=True)


def newest_readable(directory: Path) -> Readable | None:
    """The newest checkpoint of a stage that is whole; None where there is none.

    One that is not whole (a disk that failed, a copy that was cut short) is named in a warning and passed over.

    Raises:
        CheckpointError: the newest complete one holds more than tensors and plain values. No run wrote it, so no
            checkpoint is loaded.
    """
    found = checkpoints_in(directory)
    for path in found:
        readable = _read(path)
        if readable is not None:
            return readable
        logger.warning("Checkpoint %s is damaged; it is passed over.", path)
    if found:
        logger.warning("No checkpoint in %s can be read: the stage starts anew.", directory)
    return None


def _read(path: Path) -> Readable | None:
    with path.open("rb") as file:
        if file.read(1) == BARE_PICKLE:
            raise _refused(path, "a bare pickle")
    if not _is_whole(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, _refusal(error)) from error
    return Readable(path, content[OURS]["journals"])


def _is_whole(path: Path) -> bool:
    """True if every member of the archive passes its CRC check, which torch skips for tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError):
        return False


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "The checkpoint holds more than tensors and plain values: loading it could run code.",
        where=f"{path} ({why})",
        fix="find out where it comes from; if it is removed, the run goes on from the one before",
    )


def _refusal(error: BaseException) -> str:
    """The reason why torch refused to load, without its advice to trust the file."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it names {found.group(1)}" if found else "its pickle is not one of a checkpoint"
