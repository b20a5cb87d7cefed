"""Slots for concurrent jobs on one machine, each with its share of the cores and GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_lightning.experiment.run_directory import writing_to
from rlhf_lightning.experiment.sweep.record import Plan

POLL_SECONDS = 0.2


@contextmanager
def leased(directory: Path, count: int, given_up: Callable[[], bool]) -> Iterator[int | None]:
    """Lease one of `count` slots for a `with` block; waits until one is free.

    A slot is a lock on a file in the sweep's directory: the operating system releases it when the process that holds
    it ends, however it ends.

    Args:
        given_up: returns True to stop waiting; the slot is then None.
    """
    lock = None
    while lock is None and not given_up():
        number, lock = next(_free(directory, count), (-1, None))
        if lock is None:
            time.sleep(POLL_SECONDS)
    if lock is None:
        yield None
        return
    try:
        yield number
    finally:
        lock.release()


def _free(directory: Path, count: int) -> Iterator[tuple[int, FileLock]]:
    for number in range(count):
        with writing_to(directory):
            lock = FileLock(directory / f".slot{number}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
        yield number, lock


def share_of(slot: int, plan: Plan, trainer: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables that give a job its share of the machine.

    The slots get the GPUs in turn, `trainer.devices` each; where there are fewer than that, slots share them. The
    number of threads is not set if the job's config names one.

    Args:
        slot: its number.
        plan: of the sweep.
        trainer: the section of the job's config.
    """
    share = {}
    devices = trainer["devices"]
    if plan.cores is not None and trainer["threads"] is None:
        share["OMP_NUM_THREADS"] = str(max(1, plan.cores // (plan.slots * devices)))
    if plan.gpus and trainer["accelerator"] != "cpu":
        own = (plan.gpus[(slot * devices + place) % len(plan.gpus)] for place in range(devices))
        share["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return share
