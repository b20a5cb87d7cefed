"""Hashes and commits of a run's inputs beside its config: records and models, from files or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rlhf_lightning.experiment.config.surroundings import artifacts_named, feedback_files
from rlhf_lightning.experiment.config.target_policy import TRUSTED, is_allowed, target_nodes
from rlhf_lightning.experiment.provenance.hashes import directory_hash, file_hash
from rlhf_lightning.settings.data import FileData, HHRlhfData, HubData
from rlhf_lightning.settings.judge import HubJudge
from rlhf_lightning.settings.model import HubModel
from rlhf_lightning.stages.run_settings import RunSettings


def data_files(settings: RunSettings) -> list[Path]:
    """The files that a run reads its records from."""
    return [file for name in _data_paths(settings) for file in _files_in(Path(name))]


def data_hashes(settings: RunSettings) -> dict[str, str]:
    """SHA-256 of each of those files that exists, by its path."""
    return {str(path): file_hash(path) for path in data_files(settings) if path.is_file()}


def model_hashes(settings: RunSettings) -> dict[str, str]:
    """SHA-256 of each local directory that a run takes a model, or another stage's artifact, from."""
    directories = sorted({name for name in _names(settings) if Path(name).is_dir()})
    return {name: directory_hash(Path(name)) for name in directories}


def module_hashes(settings: RunSettings) -> dict[str, str]:
    """SHA-256 of each of the user's own modules that a `_target_` or `plugins` names, by top-level name."""
    sections = {"optimizer": settings.optimizer, "callbacks.extra": settings.callbacks.extra}
    targets = set(settings.plugins) | {
        str(node["_target_"]) for key, part in sections.items() for _, node in target_nodes(part, key)
    }
    found = {target: find_spec(target.partition(".")[0]) for target in targets if not is_allowed(target, TRUSTED)}
    places = {spec.name: Path(spec.origin) for spec in found.values() if spec is not None and spec.origin is not None}
    return {
        name: directory_hash(place.parent) if place.name == "__init__.py" else file_hash(place)
        for name, place in sorted(places.items())
    }


def hub_commits(settings: RunSettings) -> dict[str, str | None]:
    """The commit of each hub model and dataset in this machine's cache; None if it is not cached."""
    asked = {name: "main" for name in _names(settings) if not Path(name).exists()}
    commits = {name: _cached_commit("models", name, revision) for name, revision in asked.items()}
    data = settings.data
    for model in (settings.judge, settings.model):
        if isinstance(model, HubModel | HubJudge) and model.name_or_path in commits:
            commits[model.name_or_path] = _cached_commit("models", model.name_or_path, model.revision or "main")
    if isinstance(data, HubData) and not Path(data.name).exists():
        commits[f"datasets/{data.name}"] = _cached_commit("datasets", data.name, "main")
    return commits


def _data_paths(settings: RunSettings) -> Iterator[str]:
    data = settings.data
    if isinstance(data, HHRlhfData):
        yield data.path
    if isinstance(data, FileData):
        yield from filter(None, (data.demonstrations, data.preferences, data.rankings, data.prompts))
    if isinstance(data, HubData) and Path(data.name).exists():
        yield data.name
    if isinstance(settings.model, HubModel) and settings.model.chat_template is not None:
        yield settings.model.chat_template
    yield from (path for _, path in feedback_files(settings))


def _names(settings: RunSettings) -> Iterator[str]:
    """Names of models and artifacts from outside the run."""
    for key, name in artifacts_named(settings):
        if key != "data.name" and name not in (*settings.sections_of_stages, "base"):
            yield name


def _files_in(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _cached_commit(kind: str, name: str, revision: str) -> str | None:
    """The cached commit of a branch or tag; for a dataset, the one fetched last."""
    from huggingface_hub import constants  # imported here, since most runs do not need it

    cache = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    reference = cache / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    if (cache / "snapshots" / revision).is_dir():
        return revision
    fetched = sorted((cache / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return fetched[-1].name if fetched and kind == "datasets" else None
