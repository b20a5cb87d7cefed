"""The memory that this process has held at most, and what the machine has left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
AVAILABLE = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
FORGET_PEAK = "5"
"""What resets the peak of the resident set (proc(5), `clear_refs`)."""
KIB = 1024

MMAP_THRESHOLD = -3
"""glibc's name for it in `mallopt` (malloc.h)."""
USERS_CHOICE = "MALLOC_MMAP_THRESHOLD_"
OWN_PAGES = 2**17
"""Tensors of at least so many bytes get pages of their own from then on, see `give_back_freed`."""


class PeakMemory:
    """The most memory held since it was made: of the GPU where there is one, else of the process.

    Where the operating system does not let a process reset its own peak, that of the whole process so far is given.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                CLEAR.write_text(FORGET_PEAK)

    @property
    def bytes(self) -> int:
        """So far. On a GPU what torch has reserved of it, and what the CUDA runtime itself takes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) + cuda_overhead(self.device)
        return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def baseline(device: torch.device) -> int:
    """Bytes in use before any model is there: the process itself, or on a GPU what the CUDA runtime takes."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) + cuda_overhead(device)
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def available(device: torch.device) -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    limits = [limit for limit in (_free_of_the_machine(), _free_of_the_cgroup()) if limit is not None]
    return min(limits, default=None)


def give_back_freed() -> None:
    """Lets the process give memory back as soon as a tensor is freed.

    Left to itself glibc puts whatever is smaller than 32 MiB between other things on a heap that hardly ever shrinks,
    and a training ends up with half as much again as it has in use. Pages of their own cost time (a third more for the
    passes of a model of 25M parameters), so this is for trainings that are large. It is left alone where the user has
    set glibc's own variable, and where the C library is another one.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version") and USERS_CHOICE not in os.environ:
        library.mallopt(MMAP_THRESHOLD, OWN_PAGES)


def cuda_overhead(device: torch.device) -> int:
    """What the CUDA runtime takes of the GPU for this process, as nearly as can be told: all that is in use beyond
    torch's own share, which is too much where another process works on the same GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def _free_of_the_machine() -> int | None:
    with contextlib.suppress(OSError):
        for line in AVAILABLE.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * KIB
    return None


def _free_of_the_cgroup() -> int | None:
    """What a container's limit leaves (cgroup v2)."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(counts["inactive_file"]))  # which the kernel gives up when asked
    return None


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * KIB
    return None
