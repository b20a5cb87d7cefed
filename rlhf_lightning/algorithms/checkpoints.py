"""Checkpoints from which a training continues exactly, with random states and journals; read without running code."""

from __future__ import annotations

import logging
import os
import pickle
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rlhf_lightning import atomic
from rlhf_lightning.distributed import all_gather_object
from rlhf_lightning.errors import CheckpointError

LINES = "*.jsonl"


class AppendedFiles:
    """The history file of a run and the line files of one stage.

    Args:
        history: of the run.
        stage_dir: the stage's own directory; every `.jsonl` file in it is a journal.
    """

    def __init__(self, history: Path, stage_dir: Path) -> None:
        self.history = history
        self.stage_dir = stage_dir

    def lengths(self) -> dict[str, int]:
        """The bytes of each journal, by its path relative to the run directory."""
        return {self._name(path): path.stat().st_size for path in self._present()}

    def flush(self) -> None:
        """Flush the appended lines to disk."""
        for path in self._present():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def truncate(self, lengths: Mapping[str, int]) -> None:
        """Truncate the journals to earlier lengths; one that did not exist yet is removed.

        Args:
            lengths: as `lengths` gave them.
        """
        for path in self._present():
            length = lengths.get(self._name(path))
            if length is None:
                path.unlink()
            else:
                os.truncate(path, min(length, path.stat().st_size))

    def _present(self) -> list[Path]:
        return [path for path in (self.history, *sorted(self.stage_dir.glob(LINES))) if path.exists()]

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.history.parent))


logger = logging.getLogger(__name__)

SUFFIX = ".ckpt"
RESUME_STATE = "resume"
"""Checkpoint key of the state that Lightning does not save."""

BARE_PICKLE = b"\x80"
"""First byte of a pickle outside an archive; `torch.save` writes archives, so no checkpoint of ours starts with it."""


@dataclass(frozen=True, slots=True)
class LoadableCheckpoint:
    """A checkpoint that can be loaded.

    Attributes:
        journals: the lengths of the stage's journals when it was written (see `AppendedFiles`).
    """

    path: Path
    journals: Mapping[str, int]


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints of a stage, the newest first."""
    return sorted(directory.glob(f"*=*{SUFFIX}"), key=lambda path: int(path.stem.partition("=")[2]), reverse=True)


def newest_loadable(directory: Path) -> LoadableCheckpoint | None:
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


def _read(path: Path) -> LoadableCheckpoint | None:
    with path.open("rb") as file:
        if file.read(1) == BARE_PICKLE:
            raise _refused(path, "a bare pickle")
    if not _is_whole(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, _refusal(error)) from error
    return LoadableCheckpoint(path, content[RESUME_STATE]["journals"])


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


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, NumPy, torch and every CUDA device of this process."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached_gauss = cast("tuple[str, Any, int, int, float]", np.random.get_state())
    assert kind == "MT19937"
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to states that `random_states` returned."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached_gauss"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


Unit = Literal["iteration", "step"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file, flush it to disk and rename it, so that it is complete or absent.

    Lightning's own way goes through the directory for temporary files, which may be on another filesystem; from there a
    file is copied, not renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        del storage_options
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, over which torch's archive then stumbles
                raise error.__context__ from None
            raise
        atomic.flush([path.parent])


class Checkpoints(pl.Callback):
    """Saves a checkpoint every few iterations or optimizer steps and keeps the newest ones.

    Lightning restores weights, optimizer, schedule, loops and the states of callbacks; this callback adds the states of
    all random number generators and the lengths of the files that the training appends to.

    It must stand before callbacks that log or roll out when an iteration or a batch begins, since what they do then
    comes after the checkpoint. The trainer needs the plugin `AtomicCheckpointIO`.

    Args:
        directory: of the checkpoints.
        journals: the files that the training appends to.
        unit: what is counted.
        every: iterations or optimizer steps between checkpoints.
        keep_last: how many are kept.
    """

    def __init__(self, directory: Path, journals: AppendedFiles, *, unit: Unit, every: int, keep_last: int) -> None:
        self.directory = directory
        self.journals = journals
        self.unit: Unit = unit
        self.every = every
        self.keep_last = keep_last
        self._last_count = 0
        self._saving = False
        self._to_restore: list[dict[str, Any]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        del stage
        # Frozen weights are not in a checkpoint: they come from where they came from when the training began.
        pl_module.strict_loading = False
        if trainer.is_global_zero:
            for orphan in self.directory.glob(f".*{atomic.SUFFIX}"):
                orphan.unlink()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: before this, Lightning makes the iterator over the data, which draws from a generator.
        del pl_module
        if self._to_restore is not None:
            restore_random_states(self._to_restore[trainer.global_rank])
            self._to_restore = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        if self.unit == "iteration":
            self._save_if_due(trainer, trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, batch
        if self.unit == "step" and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save_if_due(trainer, trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._saving:
            return
        frozen = _frozen(pl_module)
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if name not in frozen}
        checkpoint[RESUME_STATE] = {
            "count": self._last_count,
            "micro_batches_per_step": trainer.accumulate_grad_batches,
            "journals": self.journals.lengths(),
            "random_states": all_gather_object(random_states()),
        }
        _as_not_begun(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning's strategy for shards has taken the weights out already, and is strict itself.
        held = checkpoint.get("state_dict")
        missing = pl_module.state_dict().keys() - held.keys() - _frozen(pl_module) if held is not None else set()
        if missing:
            raise CheckpointError(
                f"The checkpoint does not hold what is trained: {len(missing)} weights are missing, "
                f"{min(missing)} among them.",
                where=str(self.directory),
                fix="put back the peft settings and the models that the run was started with",
            )
        ours = checkpoint[RESUME_STATE]
        self._last_count = ours["count"]
        self._to_restore = ours["random_states"]
        # Lightning counts in micro-batches, and their size may be another one now.
        before, now = ours["micro_batches_per_step"], trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        positions = loop["state_dict"].get("combined_loader", [])
        for counts in (*_counts(loop, "epoch_loop.batch_progress"), *positions):
            counts.update({name: count * now // before for name, count in counts.items()})

    def _save_if_due(self, trainer: pl.Trainer, count: int) -> None:
        if count % self.every or count == self._last_count:
            return
        self._last_count = count
        self._saving = True
        if trainer.is_global_zero:
            self.journals.flush()
        trainer.save_checkpoint(self.directory / f"{self.unit}={count:06d}{SUFFIX}", weights_only=False)
        self._saving = False
        if trainer.is_global_zero:
            for old in checkpoints_in(self.directory)[self.keep_last :]:
                old.unlink()


def _frozen(module: pl.LightningModule) -> set[str]:
    """The names of weights that are not trained."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _as_not_begun(loop: dict[str, Any]) -> None:
    """Reset the progress counts that Lightning raises before the hooks that save: of a batch or epoch not begun."""
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    for counts in _counts(loop, "epoch_loop.batch_progress"):
        counts["ready"] = counts["started"]
    batches["is_last_batch"] = False
    if batches["current"]["started"] == 0 or epochs["current"]["ready"] > epochs["current"]["started"]:
        for counts in _counts(loop, "epoch_progress"):
            counts["ready"] = counts["started"] = counts["processed"]


def _counts(loop: dict[str, Any], *progresses: str) -> Iterator[dict[str, int]]:
    for progress in progresses:
        yield loop[progress]["total"]
        yield loop[progress]["current"]
