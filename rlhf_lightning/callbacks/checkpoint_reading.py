"""Which checkpoint a stage goes on from: the newest that can be read, and none that could run code."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lightning.callbacks.checkpoints import OURS, checkpoints_in
from rlhf_lightning.errors import CheckpointError

logger = logging.getLogger(__name__)

PICKLES = (b"PK\x03\x04", b"\x80")
"""How files begin that hold a pickle: torch's archives, and bare ones."""


@dataclass(frozen=True, slots=True)
class Readable:
    """A checkpoint that can be loaded.

    Attributes:
        journals: the lengths of the stage's journals when it was written (see `Journals`).
    """

    path: Path
    journals: Mapping[str, int]


def newest_readable(directory: Path) -> Readable | None:
    """The newest checkpoint of a stage that is whole; None where there is none.

    One that is not whole (a disk that failed, a copy that was cut short) is named in a warning and passed over.

    Raises:
        CheckpointError: one of them holds something else than tensors and plain values. It was not written by a run,
            so none is loaded at all.
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
    """The checkpoint, if it is whole. It is read to its end: damage may be anywhere."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _begin(path).startswith(PICKLES):
            raise CheckpointError(
                "The checkpoint holds more than tensors and plain values: loading it could run code.",
                where=f"{path} ({_first_sentence(error)})",
                fix="remove it if you do not know where it comes from; the run then goes on from the one before",
            ) from error
        return None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError):
        return None
    return Readable(path, content[OURS]["journals"]) if isinstance(content, dict) and OURS in content else None


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _first_sentence(error: BaseException) -> str:
    """What torch refused, without its advice to trust the file."""
    words = str(error)
    start = words.find("Unsupported")
    return " ".join(words[start if start >= 0 else 0 :].split()).partition(". ")[0].partition(" Please")[0][:160]
