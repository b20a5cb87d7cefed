"""The environment of a run: packages, processors, and environment variables that affect its arithmetic."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

DECIDING_PACKAGES = (
    *("torch", "pytorch-lightning", "transformers", "peft", "tokenizers", "jinja2", "numpy", "accelerate"),
    *("bitsandbytes", "triton", "datasets", "pyarrow", "safetensors"),
)
"""The packages that compute, render chat templates, or read and write what is computed with. What others do (Hydra,
pydantic) is in the config, which is recorded."""

DECIDING_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables that change the bits of a result. No others are recorded."""


@functools.cache
def installed() -> Mapping[str, str]:
    """Every installed package's version, by its normalized name."""
    packages = (each.metadata for each in metadata.distributions())  # a property that reads the file each time
    found = {_normal(package["Name"]): package["Version"] for package in packages if package["Name"]}
    return dict(sorted(found.items()))


def deciding_packages(packages: Mapping[str, str]) -> dict[str, str]:
    """The installed packages whose version may change a result."""
    return {name: packages[name] for name in DECIDING_PACKAGES if name in packages}


def environment() -> dict[str, str]:
    """The environment variables that change the bits of a result."""
    return {name: os.environ[name] for name in DECIDING_VARIABLES if name in os.environ}


def machine() -> dict[str, Any]:
    """Python, platform, processors, memory in bytes, GPUs."""
    import psutil  # imported here, since a run that cannot start does not need it

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def arithmetic() -> dict[str, Any]:
    """Torch's arithmetic settings in this process; called when a run has ended, since it imports torch."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _cpu() -> str:
    """The processor's name, from /proc/cpuinfo on Linux, else from `platform`."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8", errors="replace").splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@functools.cache
def _gpus() -> list[str]:
    """The names of the GPUs from nvidia-smi, since torch may not be imported yet."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
