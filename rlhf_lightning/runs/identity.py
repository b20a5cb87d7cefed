"""Identity of the stages of a run: everything that decides what a stage leaves, and nothing else.

One record answers what a run is made of. Its hash is the cache key, which also names artifacts; `provenance.json` holds
the record; a rerun compares it with that of today; resuming compares its settings.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_lightning.constitutions.identity import critique_part, judge_part
from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.models.settings import HubModel
from rlhf_lightning.runs.code_identity import code_of, hash_of_module, is_ours
from rlhf_lightning.runs.input_identity import (
    BASE,
    Records,
    adapter_base,
    base_identity,
    data_identity,
    digest_of,
    model_identity,
    path_identity,
)
from rlhf_lightning.runs.machine import deciding_packages, installed
from rlhf_lightning.stages.declaration import ROLLOUT_METRICS
from rlhf_lightning.stages.readers import is_among, leaves, named_inputs, names_only, reads, watched, without_effect
from rlhf_lightning.stages.reward_kinds import REWARDS
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.stages.targets import TRUSTED, is_allowed, target_nodes

MIXTURE = "begun under one key, gone on under another"

PARTS = ("settings", "inputs", "data", "hardware", "code")
"""Parts of an identity that are a stage's own."""

SPLITTING = frozenset({"data.on_bad_record", "data.held_out_fraction", "data.max_records", "data.record"})
"""Keys that decide which records of recorded data a stage sees."""


@dataclass(frozen=True)
class StageIdentity:
    """Everything that decides what a stage leaves, as plain containers.

    Attributes:
        settings: dotted key -> value, of what the stage reads and what decides its result.
        inputs: config key -> identity of what it names, several of them for a list.
        data: identity of the records it reads; empty where it reads none, or made ones.
        hardware: the device that it computes on, and how.
        code: of this program; of code that the config names from elsewhere, under its module's name.
        packages: versions of those that compute.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, list[str]]
    data: dict[str, str]
    hardware: dict[str, Any]
    code: dict[str, str]
    packages: dict[str, str]

    @property
    def key(self) -> str:
        """SHA-256 of all of it: the key of the stage."""
        return digest_of(asdict(self))


class StageKeys:
    """The keys of the stages of one run.

    Args:
        settings: of the run.
        device: the kind of device that it computes on.
        records: reads its data, where the data's files do not tell what is in it; None: that part stays unknown.
    """

    def __init__(self, settings: RunSettings, device: str, records: Records | None) -> None:
        self.settings = settings
        self.device = device
        self._records = records
        self._known: dict[str, str] = {}
        self._mixtures: set[str] = set()

    def of(self, stage: str) -> str:
        """A stage's key, as hex digits."""
        if stage not in self._known:
            self._known[stage] = self.identity(stage).key
        return self._known[stage]

    def remember(self, stage: str, key: str) -> None:
        """Uses the key under which a finished stage of this run was made, by the code and packages of that time."""
        self._known[stage] = key

    def remember_mixture(self, stage: str, begun: str | None) -> None:
        """Gives a stage that was started under another key and resumed under today's a key that is neither."""
        self._known[stage] = digest_of([MIXTURE, begun, self.of(stage)])
        self._mixtures.add(stage)

    def is_mixture(self, stage: str) -> bool:
        """True if a stage was started under one key and resumed under another."""
        return stage in self._mixtures

    def identity(self, stage: str) -> StageIdentity:
        """Everything that decides what a stage leaves."""
        settings = self.settings
        declared = settings.stage(stage)
        copies = declared.copies_records(settings, stage)
        return StageIdentity(
            stage=stage,
            settings=dict(settings_read(settings, stage)),
            inputs=self._inputs(stage),
            data=self._data if declared.reads_records(settings, stage) else {},
            hardware={} if copies else self._hardware(stage),
            code={**code_of(declared), **_code_from_elsewhere(settings, stage)},
            packages=deciding_packages(installed()),
        )

    def record(self) -> dict[str, dict[str, Any]]:
        """The identities of all stages of the pipeline as plain containers, without the packages, which all share."""
        found = {stage: asdict(self.identity(stage)) for stage in self.settings.pipeline.stages}
        return {stage: {part: found[stage][part] for part in PARTS} for stage in found}

    def _inputs(self, stage: str) -> dict[str, list[str]]:
        inputs: dict[str, list[str]] = {}
        for key, name in self._named(stage):
            inputs.setdefault(key, []).append(self._identity(name))
        return inputs

    def _named(self, stage: str) -> Iterator[tuple[str, str]]:
        yield from named_inputs(self.settings, stage, "stage", "model", "file")
        yield from self.settings.stage(stage).unnamed_inputs(self.settings, stage)

    def _identity(self, name: str) -> str:
        if name == BASE:
            model = self.settings.model
            of_the_hub = isinstance(model, HubModel) and not Path(model.name_or_path).exists()
            return f"{'hub' if of_the_hub else 'base'} {digest_of(self._base)}"
        if name in self.settings.sections_of_stages:
            return f"stage {name} {self.of(name)}"
        base = adapter_base(Path(name))
        if base is None:
            return model_identity(name)
        return f"{path_identity(Path(name))} on {self._base_of_adapter(*base)}"

    def _base_of_adapter(self, name: str, revision: str | None) -> str:
        """Identity of the base of an adapter from outside the run: its own base, or the run's if that is missing."""
        if Path(name).is_absolute() and not Path(name).exists():
            return f"base {digest_of(self._base)}"
        return model_identity(name, revision)

    @functools.cached_property
    def _data(self) -> dict[str, str]:
        return data_identity(self.settings, self._records)

    @functools.cached_property
    def _base(self) -> dict[str, Any]:
        return base_identity(self.settings, self._data)

    def _hardware(self, stage: str) -> dict[str, Any]:
        if not self.settings.trains(stage):
            return {"device": self.device}
        trainer = self.settings.trainer
        return {
            "device": self.device,
            "processes": trainer.processes,
            **trainer.model_dump(include={"strategy", "precision", "deterministic"}),
        }


def settings_read(settings: RunSettings, stage: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of the settings that a stage reads and that decide its result."""
    left_out = without_effect(type(settings)) | names_only(settings, stage)
    for key, value in leaves(settings.model_dump(mode="json")):
        if is_among(key, left_out) or not _is_read(settings, stage, key):
            continue
        yield key, _part_read(settings, stage) if key == "constitution.principles" else value


def deciding_settings(settings: RunSettings) -> dict[str, Any]:
    """All settings that decide what a run leaves: dotted key -> value.

    Those that its stages read, names of inputs included, and how it is trained. Keys of monitoring and logging are left
    out: they may change while a run goes on.
    """
    plain = dict(leaves(settings.model_dump(mode="json")))
    left_out = without_effect(type(settings)) | watched(type(settings))
    return {key: plain[key] for key in plain if not is_among(key, left_out) and _decides(settings, key)}


def _decides(settings: RunSettings, key: str) -> bool:
    of_the_run = is_among(key, {"pipeline", "trainer", "data"})
    return of_the_run or any(reads(settings, stage, key) for stage in settings.pipeline.stages)


def changes(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Descriptions of what differs between two records of `StageKeys.record`: code, data and models.

    Stages that only one of them has are left out, and so is what the hub has: only its first use tells the commit.
    """
    found: list[str] = []
    for stage in first.keys() & now.keys():
        before, after = first[stage], now[stage]
        found += [f"the code of {name}" for name in _different(before["code"], after["code"])]
        found += [f"the content of data.{name}" for name in _different(before["data"], after["data"])]
        for key in _different(before["inputs"], after["inputs"]):
            kinds = {identity.partition(" ")[0] for identity in (*before["inputs"][key], *after["inputs"][key])}
            if not kinds & {"stage", "hub"}:
                found.append("the base model" if kinds == {"base"} else f"the content of {key}")
    return sorted(set(found))


def _different(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names that both have, with other values."""
    return [name for name in first if name in now and first[name] != now[name]]


def _part_read(settings: RunSettings, stage: str) -> Any:
    """The fields of the principles that a stage reads: a critique does not use the judge's questions."""
    read = judge_part if "judge" in settings.stage(stage).reads else critique_part
    return read(settings.constitution)


def _is_read(settings: RunSettings, stage: str, key: str) -> bool:
    if key == "data.demonstrations" and not isinstance(settings.data, CourtesyData):
        return False  # a path, whose content is in the key
    splits = is_among(key, SPLITTING) and settings.stage(stage).reads_records(settings, stage)
    return splits or reads(settings, stage, key)


def _code_from_elsewhere(settings: RunSettings, stage: str) -> dict[str, str]:
    """Hashes of the modules that `_target_` names, but for packages whose version is in the key; and of plugins."""
    modules = set(_registered_modules(settings, stage))
    if settings.trains(stage):
        named = {"optimizer": settings.optimizer, "callbacks.extra": settings.callbacks.extra}
        targets = {str(node["_target_"]) for _, node in target_nodes(named, "")}
        modules.update(filter(None, (_module_of(one) for one in targets if not is_allowed(one, TRUSTED))))
    return {module: hash_of_module(module) for module in sorted(modules)}


def _registered_modules(settings: RunSettings, stage: str) -> Iterator[str]:
    """Modules of the reward and the metrics that a user's plugins bring to a stage."""
    declared = settings.stage(stage)
    registered: list[object] = [type(REWARDS[settings.reward.kind])] if "reward" in declared.reads else []
    registered += ROLLOUT_METRICS.values() if declared.by_episodes else ()
    yield from (one.__module__ for one in registered if not is_ours(one.__module__))


def _module_of(target: str) -> str:
    """The module of a dotted name; empty if there is none (instantiating it reports the error)."""
    module = target.rpartition(".")[0]
    while module:
        try:
            if find_spec(module) is not None:
                return module
        except ModuleNotFoundError:
            pass  # `package.module.Class.method`: the part before the last dot need not be a module
        module = module.rpartition(".")[0]
    return ""
