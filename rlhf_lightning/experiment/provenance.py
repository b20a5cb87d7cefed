"""Where a run came from: code, packages, machine, data, command. No environment variable is recorded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.settings.data import FileData, HHRlhfData
from rlhf_lightning.settings.run import RunSettings

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "peft",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "wandb",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
)
SECRET = re.compile(
    r"((?<![A-Za-z])(?:(?:api|access|secret|private)[_-]?key|token|secret|password)[\"']?(?:=|:[ ]+(?=\S+$)))[^\s&]+",
    re.IGNORECASE | re.MULTILINE,
)
CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
LONGEST_DIFF = 1_000_000
"""Characters of an uncommitted diff that are kept."""


def gather_provenance(settings: RunSettings, overrides: Sequence[str]) -> dict[str, Any]:
    """Everything that says where a run came from, as plain containers."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact(word) for word in sys.argv],
        "overrides": [redact(override) for override in overrides],
        "config_sha256": config_hash(settings),
        "rlhf_lightning": __version__,
        "git": git_state(Path(__file__).resolve().parent.parent),
        "packages": {name: found for name in PACKAGES if (found := _version_of(name)) is not None},
        "machine": machine(),
        "data": {str(path): file_hash(path) for path in data_files(settings)},
    }


def changes_of_origin(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What decides the bits of a result and is another than when the run was started, in words."""
    changes = [
        f"{name} {first['packages'].get(name, 'none')} -> {version}"
        for name, version in now["packages"].items()
        if first["packages"].get(name) != version
    ]
    if first["rlhf_lightning"] != now["rlhf_lightning"] or _code(first) != _code(now):
        changes.append("the code of rlhf_lightning")
    changes += [f"the content of {path}" for path, digest in now["data"].items() if first["data"].get(path) != digest]
    return changes


def _code(origin: Mapping[str, Any]) -> tuple[str, str] | None:
    git = origin["git"]
    return (git["commit"], git["diff"]) if git else None


def redact(text: str) -> str:
    """Text without the values of keys, tokens, secrets and passwords, and without credentials in a URL."""
    return CREDENTIALS.sub(r"\1***@", SECRET.sub(r"\1***", text))


def config_hash(settings: RunSettings) -> str:
    """SHA-256 of the settings, apart from where they are written: the same run elsewhere has the same hash."""
    content = settings.model_dump(mode="json", exclude={"paths"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the checkout that a package runs from; None when it runs from no checkout."""
    root = package.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(root, "diff", "HEAD") or ""
    return {
        "commit": commit.strip(),
        "branch": (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "dirty": bool(_git(root, "status", "--porcelain")),
        "diff": redact(diff[:LONGEST_DIFF]),
        "diff_complete": len(diff) <= LONGEST_DIFF,
    }


def machine() -> dict[str, Any]:
    """Python, platform, processors, memory in bytes, GPUs."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": pages * page,
        "gpus": _gpus(),
    }


def data_files(settings: RunSettings) -> list[Path]:
    """The files that a run reads its records from."""
    return [file for name in _data_paths(settings) for file in _files_in(Path(name))]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _data_paths(settings: RunSettings) -> Iterator[str]:
    data = settings.data
    if isinstance(data, HHRlhfData):
        yield data.path
    if isinstance(data, FileData):
        yield from filter(None, (data.demonstrations, data.preferences, data.rankings, data.prompts))


def _files_in(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


@functools.cache
def _gpus() -> list[str]:
    """The names of the GPUs, asked of the driver's own tool, since torch may not be loaded yet."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
