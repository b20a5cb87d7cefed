"""The key of a stage: a hash of everything that decides what it leaves, and of nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_lightning.constitutions.identity import critique_part, judge_part
from rlhf_lightning.experiment.cache.code import NAME, code_hash, hash_of_module
from rlhf_lightning.experiment.cache.content import (
    BASE,
    Records,
    adapter_base,
    base_identity,
    data_identity,
    digest_of,
    model_identity,
    path_identity,
)
from rlhf_lightning.experiment.config.target_policy import TRUSTED, is_allowed, target_nodes
from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.settings.judge import HubJudge
from rlhf_lightning.settings.peft import QLora
from rlhf_lightning.settings.readers import FREE, JUDGED, TRAINING, is_among, leaves, readers_of
from rlhf_lightning.settings.run import FROM_DATA, STAGE_NAMES, RunSettings, StageName, stage_inputs
from rlhf_lightning.worlds.courtesy.recorded import recorded_path

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "peft",
    "tokenizers",
    "numpy",
    "datasets",
    "safetensors",
)
"""The packages that compute, or read and write what is computed with."""

MIXTURE = "begun under one key, gone on under another"

LENGTHS = frozenset({"data.max_prompt_length", "data.on_long_record"})
DEMONSTRATORS = frozenset({"data.demonstrations", "data.demonstrator"})
READ_FROM_DATA: dict[StageName, frozenset[str]] = {
    "sft": LENGTHS | {"data.kind", "data.max_reply_length"} | DEMONSTRATORS,
    "critique_revision": frozenset({"data.kind"}),
    "revision_sft": LENGTHS | {"data.kind", "data.max_reply_length"} | DEMONSTRATORS,
    "comparisons": LENGTHS | {"data.kind", "data.annotator"},
    "judge_calibration": frozenset({"data.kind"}),
    "ai_feedback": LENGTHS | {"data.kind"},
    "reward_model": LENGTHS | {"data.max_reply_length"},
    "ppo": LENGTHS | {"data.kind"},
    "evaluate": LENGTHS | {"data.kind"},
}
"""What a stage reads from the data section in the courtesy world."""

SPLITTING = frozenset({"data.on_bad_record", "data.held_out_fraction", "data.max_records", "data.record"})
"""What decides, of recorded data, which records a stage sees."""

FILES_OF_PROMPTS = ("prompts_from", "helpful_prompts_from")

NAMES = frozenset(
    {
        *("sft.policy_from", "comparisons.policy_from", "reward_model.backbone_from", "reward_model.comparisons_from"),
        *("sft.demonstrations_from", "revision_sft.policy_from", "revision_sft.demonstrations_from"),
        *(f"critique_revision.{key}" for key in ("policy_from", "reviser_from", *FILES_OF_PROMPTS)),
        *("judge.model_from", "judge.name_or_path", "judge_calibration.data"),
        *("ai_feedback.policy_from", "ai_feedback.calibration_from", "reward_model.mix_from"),
        *("ppo.policy_from", "ppo.reward_from", "evaluate.reference_from", "evaluate.reward_from"),
        *("reward.models", "reward.name_or_path"),
    }
)
"""Keys that only name an input, whose identity is in the key. (Evaluated policies are named in the figures.)"""

LEFT_OUT = FREE | NAMES


@dataclass(frozen=True)
class Ingredients:
    """What a stage's key is made of, plain.

    Attributes:
        settings: dotted key -> value, of what the stage reads and what decides its result.
        inputs: config key -> identity of what it names, several of them for a list.
        data: identity of the records it reads; empty where it reads none, or made ones.
        hardware: what it computes on, and how.
        code: of this program; of code that the config names from elsewhere, under its module's name.
        packages: versions.
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
        """SHA-256 of all of it."""
        return digest_of(asdict(self))


class StageKeys:
    """The keys of the stages of one run.

    Args:
        settings: of the run.
        device: the kind of device that it computes on.
        records: reads its data, where the data's files do not tell what is in it.
    """

    def __init__(self, settings: RunSettings, device: str, records: Records) -> None:
        self.settings = settings
        self.device = device
        self._records = records
        self._known: dict[str, str] = {}
        self._mixtures: set[str] = set()

    def of(self, stage: StageName) -> str:
        """A stage's key, as hex digits."""
        if stage not in self._known:
            self._known[stage] = self.ingredients(stage).key
        return self._known[stage]

    def remember(self, stage: str, key: str) -> None:
        """The key under which a stage of this run was really made, by the code and packages of that time."""
        self._known[stage] = key

    def remember_mixture(self, stage: StageName, begun: str | None) -> None:
        """A stage that was begun under another key, and went on under today's: its key is neither."""
        self._known[stage] = digest_of([MIXTURE, begun, self.of(stage)])
        self._mixtures.add(stage)

    def is_mixture(self, stage: StageName) -> bool:
        """Whether a stage was begun under one key and went on under another."""
        return stage in self._mixtures

    def ingredients(self, stage: StageName) -> Ingredients:
        """What a stage's key is made of."""
        settings = self.settings
        recorded = not isinstance(settings.data, CourtesyData)
        only_reads = stage == "comparisons" and recorded
        return Ingredients(
            stage=stage,
            settings=dict(settings_read(settings, stage)),
            inputs={} if only_reads else self._inputs(stage),
            data=self._data if _reads_records(settings, stage) else {},
            hardware={} if only_reads else self._hardware(stage),
            code={NAME: code_hash(stage), **_code_from_elsewhere(settings, stage)},
            packages=_versions(),
        )

    def _inputs(self, stage: StageName) -> dict[str, list[str]]:
        inputs: dict[str, list[str]] = {}
        for key, name in self._named(stage):
            inputs.setdefault(key, []).append(self._identity(name))
        return inputs

    def _named(self, stage: StageName) -> Iterator[tuple[str, str]]:
        settings = self.settings
        yield from stage_inputs(settings, stage)
        if stage == "ppo" and settings.reward.kind == "classifier":
            yield "reward.name_or_path", settings.reward.name_or_path
        if judges(settings, stage) and isinstance(settings.judge, HubJudge):
            yield "judge.name_or_path", settings.judge.name_or_path
        yield from files_named(settings, stage)

    def _identity(self, name: str) -> str:
        if name == BASE:
            return f"base {digest_of(self._base)}"
        if name in STAGE_NAMES:
            return f"stage {name} {self.of(name)}"
        base = adapter_base(Path(name))
        if base is None:
            return model_identity(name)
        return f"{path_identity(Path(name))} on {self._base_of_adapter(*base)}"

    def _base_of_adapter(self, name: str, revision: str | None) -> str:
        """The base that an adapter from elsewhere will be put on: its own, or, where that has gone, the run's."""
        if Path(name).is_absolute() and not Path(name).exists():
            return f"base {digest_of(self._base)}"
        return model_identity(name, revision)

    @functools.cached_property
    def _data(self) -> dict[str, str]:
        return data_identity(self.settings, self._records)

    @functools.cached_property
    def _base(self) -> dict[str, Any]:
        return base_identity(self.settings, self._data)

    def _hardware(self, stage: StageName) -> dict[str, Any]:
        if stage not in TRAINING:
            return {"device": self.device}
        trainer = self.settings.trainer
        return {
            "device": self.device,
            "processes": trainer.processes,
            **trainer.model_dump(include={"strategy", "precision", "deterministic"}),
        }


def settings_read(settings: RunSettings, stage: StageName) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of what a stage reads and what decides what it leaves."""
    for key, value in leaves(settings.model_dump(mode="json")):
        if is_among(key, LEFT_OUT) or not _is_read(settings, stage, key):
            continue
        yield key, _part_read(settings, stage) if key == "constitution.principles" else value


def _part_read(settings: RunSettings, stage: StageName) -> Any:
    """What a stage reads of the principles: a critique does not ask what a judge is asked."""
    read = critique_part if stage == "critique_revision" else judge_part
    return read(settings.constitution)


def _is_read(settings: RunSettings, stage: StageName, key: str) -> bool:
    recorded = not isinstance(settings.data, CourtesyData)
    if stage == "comparisons" and recorded:  # they are there already, and only split
        return key == "reward_model.pairing" or is_among(key, SPLITTING | {"data.kind"})
    if key == "seed":
        return stage != "evaluate"  # it has a seed of its own, the same in every run
    if key == "model.dtype":
        return True
    if key in ("peft.quantization", "peft.double_quantization"):
        return isinstance(settings.peft, QLora)
    if key.startswith("data."):
        splits = _reads_records(settings, stage) and is_among(key, SPLITTING)
        content = recorded and key == "data.demonstrations"  # a path, whose content is in the key
        elsewhere = is_among(key, DEMONSTRATORS) and not _reads_records(settings, stage)
        return (is_among(key, READ_FROM_DATA[stage]) and not content and not elsewhere) or splits
    if is_among(key, frozenset({"constitution", "judge"})) and stage == "evaluate":
        return judges(settings, stage)
    if key == "callbacks.plots":  # the other pictures lie beside what the stages leave, and each run draws them anew
        return stage == "judge_calibration"
    if key == "reward_model.pairing" and stage == "judge_calibration":  # a file's rankings are paired in one way only
        return recorded and settings.judge_calibration.data is None
    readers = readers_of(key)
    return readers is not None and stage in readers


def judges(settings: RunSettings, stage: StageName) -> bool:
    """Whether a stage asks the judge."""
    return stage in JUDGED and (stage != "evaluate" or settings.evaluate.satisfaction is not None)


def files_named(settings: RunSettings, stage: StageName) -> Iterator[tuple[str, str]]:
    """Files of records that a stage's own section names, by their keys."""
    if stage == "critique_revision":
        named = {key: getattr(settings.critique_revision, key) for key in FILES_OF_PROMPTS}
        yield from ((f"critique_revision.{key}", path) for key, path in named.items() if path is not None)
    if stage == "judge_calibration":
        if settings.judge_calibration.data is not None:
            yield "judge_calibration.data", settings.judge_calibration.data
        elif isinstance(settings.data, CourtesyData):
            yield "judge_calibration.data", str(recorded_path())


def _reads_records(settings: RunSettings, stage: StageName) -> bool:
    """Whether a stage reads records of the data group, and not only what other stages left."""
    if stage in ("sft", "revision_sft"):
        own = settings.sft if stage == "sft" else settings.revision_sft
        return own.demonstrations_from == FROM_DATA
    return stage != "reward_model"


def _code_from_elsewhere(settings: RunSettings, stage: StageName) -> dict[str, str]:
    """Hashes of the modules that `_target_`s name, but for those of packages whose version is in the key."""
    if stage not in TRAINING:
        return {}
    named = {"optimizer": settings.optimizer, "callbacks.extra": settings.callbacks.extra}
    targets = {str(node["_target_"]) for _, node in target_nodes(named, "")}
    own = {target for target in targets if target.split(".")[0] == NAME or not is_allowed(target, TRUSTED)}
    return {module: _hash_of_code(module) for module in map(_module_of, own) if module}


def _module_of(target: str) -> str:
    """The module that a dotted name lies in; empty where there is none, which making an object of it will report."""
    module = target.rpartition(".")[0]
    while module:
        try:
            if find_spec(module) is not None:
                return module
        except ModuleNotFoundError:
            pass  # `package.module.Class.method`: what lies before the last dot need be no module either
        module = module.rpartition(".")[0]
    return ""


def _hash_of_code(module: str) -> str:
    """Of a module of this package, with all that it imports from there; of another one, its file's."""
    if module.split(".")[0] == NAME:
        return hash_of_module(module)
    found = find_spec(module)
    return path_identity(Path(found.origin)) if found is not None and found.origin is not None else module


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}
