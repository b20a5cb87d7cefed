"""Identities of a run's inputs by content, whatever their path, and SHA-256 of files and directories."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from rlhf_lightning.data.settings import CourtesyData, FileData, HHRlhfData
from rlhf_lightning.data.sources import DataSource, RecordedSource
from rlhf_lightning.models.hub import hub_is_reachable
from rlhf_lightning.models.settings import HubModel, ScratchModel
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds.courtesy import asset_path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_hash(directory: Path) -> str:
    """SHA-256 of the names and contents of the files below a directory, hidden ones and compiled code apart."""
    return combined_hash(directory, visible_files(directory))


def combined_hash(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of some files' contents and of their names as seen from a directory."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def visible_files(directory: Path) -> list[Path]:
    """The files below a directory in a fixed order, without hidden ones and compiled code."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    shown = (path for path in found if not any(part.startswith(".") or part == "__pycache__" for part in path.parts))
    return [directory / path for path in sorted(shown)]


BASE = "base"
ADAPTER = "adapter_config.json"
FILES = ("demonstrations", "preferences", "rankings", "prompts")

Records = Callable[[], DataSource]
"""Reads a run's data; called only if nothing cheaper tells two contents apart."""


def digest_of(content: Any) -> str:
    """SHA-256 of plain containers, as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def path_identity(path: Path) -> str:
    """Identity of a file or directory by content. Hashes are kept, and reused while size and time are unchanged."""
    path = path.resolve()
    seen = tuple(
        (str(file), status.st_size, status.st_mtime_ns)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file() and (status := file.stat())
    )
    return _hashed(path, seen)


@functools.cache
def _hashed(path: Path, _seen: tuple[tuple[str, int, int], ...]) -> str:
    return f"content {directory_hash(path) if path.is_dir() else file_hash(path)}"


def data_identity(settings: RunSettings, records: Records | None) -> dict[str, str]:
    """Identity of the records that a run reads: the files' content, or the records themselves of a hub dataset.

    Empty for the courtesy world, whose records follow from its code and settings, both of which are in the key.
    """
    data = settings.data
    if isinstance(data, CourtesyData):
        return {}
    if isinstance(data, HHRlhfData):
        return {"path": path_identity(Path(data.path))}
    if isinstance(data, FileData):
        named = {name: getattr(data, name) for name in FILES}
        return {name: path_identity(Path(path)) for name, path in named.items() if path is not None}
    if Path(data.name).exists():
        return {"name": path_identity(Path(data.name)), "config": str(data.config), "split": data.split}
    return {"records": _records_hash(records())} if records is not None else {}


def _records_hash(source: DataSource) -> str:
    assert isinstance(source, RecordedSource)
    digest = hashlib.sha256()
    for record in (*source.given_demonstrations, *source.given_comparisons, *source.given_prompts):
        digest.update(f"{type(record).__name__} {digest_of(asdict(record))}".encode())
    return digest.hexdigest()


def base_identity(settings: RunSettings, data: Mapping[str, str]) -> dict[str, Any]:
    """Identity of the base model.

    Args:
        data: the identity of the run's data, which trains the tokenizer of a model from scratch.
    """
    model = settings.model
    if isinstance(model, HubModel):
        template = model.chat_template
        return {
            "model": model_identity(model.name_or_path, model.revision),
            "trust_remote_code": model.trust_remote_code,
            "chat_template": path_identity(Path(template)) if template is not None else None,
        }
    if isinstance(model, ScratchModel):
        shape = model.model_dump(include={"vocab_size", "hidden_size", "layers", "heads", "max_positions", "dtype"})
        return {**shape, "seed": settings.seed, "text": {**_text_settings(settings), **data}}
    return {"courtesy": path_identity(asset_path())}


def _text_settings(settings: RunSettings) -> dict[str, Any]:
    """The settings that decide on which of the data's text a tokenizer is trained."""
    plain = settings.data.model_dump(mode="json")
    if isinstance(settings.data, CourtesyData):
        return {name: plain[name] for name in ("kind", "demonstrations", "demonstrator")}
    return {
        name: plain[name]
        for name in plain
        if name in ("kind", "on_bad_record", "held_out_fraction", "max_records", "record")
    }


def model_identity(name: str, revision: str | None = None) -> str:
    """Identity of a model from outside the run: the content of its directory, or its commit on the hub."""
    if Path(name).exists():
        return path_identity(Path(name))
    return f"hub {name} {_commit(name, revision)}"


@functools.cache
def _commit(name: str, revision: str | None) -> str:
    """The current commit of a hub id; its revision if the commit is unknown (opening the model reports the error)."""
    if hub_is_reachable():
        try:
            found = HfApi().model_info(name, revision=revision).sha
        except (HfHubHTTPError, httpx.HTTPError):
            found = None
        if found is not None:
            return found
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else str(revision)


def adapter_base(directory: Path) -> tuple[str, str | None] | None:
    """Directory or hub id, and revision, of the base that an adapter's config names; None if it names none.

    An unreadable config counts as naming none: opening the adapter reports the error.
    """
    try:
        config = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (str(name), config.get("revision")) if name else None
