"""The stage cache in real runs: what is taken is what would have been made, and keys hold what stages read."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import cut_short_in_iteration
from tiny_runs import CONSTITUTIONAL, SMALL, fingerprints, finished_metrics, placed, read_jsonl, train, without_times

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.cache.code import DECIDES_NOTHING, NAME
from rlhf_lightning.experiment.cache.keys import NAMES, settings_read
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.stage import StageContext, StageResult
from rlhf_lightning.experiment.stages import STAGE_FUNCTIONS
from rlhf_lightning.settings.readers import FREE, is_among
from rlhf_lightning.settings.run import STAGE_NAMES, RunSettings, StageName
from rlhf_lightning.settings.section import Section

LIMIT = 500.0
"""Seconds after which a process counts as stuck."""

RLHF: tuple[StageName, ...] = ("sft", "comparisons", "reward_model", "ppo", "evaluate")
"""The stages of the default pipeline."""

SMALLER = (*SMALL, "ppo.iterations=1", "evaluate.splits=[iid]", "callbacks.plots=true")

IN_THE_KEY_OTHERWISE = frozenset(
    {"trainer", "model", "data", "seed", "peft.kind", "evaluate.policies", "allow_targets"}
)
"""Hardware, base model and records are in keys under names of their own; kinds choose among what is there."""

SEEN_TO_BE_READ = {
    "sft": {"sft.epochs", "sft.learning_rate", "data.demonstrations", "seed"},
    "comparisons": {"rollout.temperature", "reward_model.pairing", "comparisons.replies"},
    "reward_model": {"reward_model.epochs", "evaluate.bootstrap_samples", "evaluate.seed"},
    "ppo": {"ppo.clip_range", "advantage.lam", "reward.scale", "rollout.temperature"},
    "evaluate": {"evaluate.temperature", "rollout.max_new_tokens"},
    "critique_revision": {"constitution.revisions", "constitution.principles", "critique_revision.temperature"},
    "revision_sft": {"revision_sft.epochs", "revision_sft.learning_rate", "seed"},
    "judge_calibration": {"judge.mode", "constitution.principles", "judge_calibration.pairs"},
    "ai_feedback": {"judge.principles", "judge.label", "rollout.temperature", "ai_feedback.replies"},
}

Made = dict[str, list[str]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The stages that were really run, in order."""
    stages: Made = {"stages": []}

    def counted(name: StageName, run_stage: Callable[[StageContext], StageResult]) -> Any:
        def count(context: StageContext) -> StageResult:
            stages["stages"].append(name)
            return run_stage(context)

        return count

    for name, run_stage in list(STAGE_FUNCTIONS.items()):
        monkeypatch.setitem(STAGE_FUNCTIONS, name, counted(name, run_stage))
    return stages


def sharing(directory: Path, name: str) -> list[str]:
    """Overrides of a run of that name, which has its cache in common with the others in that directory."""
    return [f"paths.outputs={directory}", f"paths.run_dir={directory / name}"]


def artifacts(run: RunDirectory) -> dict[str, str]:
    """A hash of every file that the stages left, of the figures and of the samples."""
    places = (*RLHF, "history.csv", "samples.jsonl")
    return {path: digest for path, digest in fingerprints(run.path).items() if path.split("/")[0] in places}


def test_what_is_taken_is_what_was_made(tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(*SMALLER, *sharing(tmp_path, "first"))
    assert made["stages"] == list(RLHF)
    capsys.readouterr()
    again = train(*SMALLER, *sharing(tmp_path, "again"), "name=other", "trainer.threads=1", "callbacks.save_every=1")
    assert made["stages"] == list(RLHF), "nothing was run again"
    assert artifacts(again) == artifacts(first)
    assert without_times(finished_metrics(again)) == without_times(finished_metrics(first))
    assert list(finished_metrics(again)["stages"]) == list(RLHF)
    assert again.status.artifacts == first.status.artifacts
    assert {path.name for path in again.path.iterdir()} >= {*RLHF, "plots"}
    assert sorted((again.path / "plots").iterdir()) != []
    for stage, figures in finished_metrics(again)["stages"].items():
        before = finished_metrics(first)["stages"][stage]
        assert figures["key"] == before["key"]
        assert figures["cache"]["made_by"] == str(first.path)
        assert figures["cache"]["seconds"] == before["seconds"]
        assert "cache" not in before
    said = capsys.readouterr()
    assert said.err.count("taken from the cache (made") == len(RLHF)
    assert "From the cache sft, comparisons, reward_model, ppo, evaluate" in " ".join(said.out.split())


def test_another_coefficient_reuses_what_it_does_not_concern(tmp_path: Path, made: Made) -> None:
    train(*SMALLER, *sharing(tmp_path, "one"))
    made["stages"].clear()
    other = train(*SMALLER, *sharing(tmp_path, "other"), "kl.coef=0.5")
    assert made["stages"] == ["ppo", "evaluate"]
    apart = train(*SMALLER, *placed(tmp_path / "apart"), "kl.coef=0.5", "cache=off")
    for stage in RLHF:
        assert fingerprints(other.path / stage) == fingerprints(apart.path / stage), (
            "from taken stages as from made ones"
        )
    made["stages"].clear()
    train(*SMALLER, *sharing(tmp_path, "reader"), "kl.coef=0.25", "cache=read_only")
    train(*SMALLER, *sharing(tmp_path, "same"), "kl.coef=0.25")
    assert made["stages"] == ["ppo", "evaluate"] * 2, "read_only takes, and leaves nothing"


def test_taken_files_cannot_be_written_and_nothing_tries(tmp_path: Path) -> None:
    train(*SMALLER, *sharing(tmp_path, "first"))
    again = train(*SMALLER, *sharing(tmp_path, "again"))
    weights = again.path / "sft" / "model.safetensors"
    assert weights.stat().st_nlink == 3, "the maker, the cache and the taker have one file"
    assert weights.stat().st_mode & 0o222 == 0
    assert main(["export", str(again.path), "--stage", "sft", "--to", str(tmp_path / "exported")]) == 0
    exported = tmp_path / "exported" / "model.safetensors"
    assert exported.read_bytes() == weights.read_bytes()
    assert exported.stat().st_nlink == 1
    with (again.path / "ppo" / "diary.jsonl").open("a") as diary:
        diary.write("{}\n")
    assert len(read_jsonl(again.path / "ppo" / "diary.jsonl")) == 1 + len(
        read_jsonl(tmp_path / "first" / "ppo" / "diary.jsonl")
    )


def test_a_stage_that_was_cut_short_is_taken_if_another_run_has_finished_it(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (*SMALL, "ppo.iterations=2", "callbacks.save_every=1", "evaluate.splits=[iid]")
    with cut_short_in_iteration(1, monkeypatch):
        assert main(["train", *sizes, *sharing(tmp_path, "cut")]) == 130
    cut = RunDirectory.open(tmp_path / "cut")
    assert list(cut.checkpoint_dir("ppo").glob("*.ckpt"))
    whole = train(*sizes, *sharing(tmp_path, "whole"))
    made["stages"].clear()
    assert main(["train", f"resume={cut.path}"]) == 0
    assert made["stages"] == []
    assert artifacts(cut) == artifacts(whole)
    assert not (cut.path / "checkpoints").exists()


def test_a_stage_that_went_on_from_its_checkpoint_is_kept_as_one_that_was_never_cut_short(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (*SMALL, "ppo.iterations=2", "callbacks.save_every=1", "evaluate.splits=[iid]")
    with cut_short_in_iteration(1, monkeypatch):
        assert main(["train", *sizes, *sharing(tmp_path, "cut")]) == 130
    assert main(["train", f"resume={tmp_path / 'cut'}"]) == 0
    made["stages"].clear()
    taken = train(*sizes, *sharing(tmp_path, "taken"))
    assert made["stages"] == []
    apart = train(*sizes, *placed(tmp_path / "apart"), "cache=off")
    assert fingerprints(taken.path / "ppo") == fingerprints(apart.path / "ppo")


def test_an_adapter_on_a_model_from_scratch_outlives_the_run_that_made_it(tmp_path: Path, made: Made) -> None:
    scratch = ("model=scratch", "model.vocab_size=300", "model.hidden_size=16", "model.heads=2", "model.layers=1")
    choices = (*SMALLER, *scratch, "peft=lora", "peft.rank=2", "reward.standardise_on_reference=null")
    lengths = ("data.max_prompt_length=160", "data.max_reply_length=160", "rollout.max_new_tokens=8")
    first = train(*choices, *lengths, *sharing(tmp_path, "first"))
    figures = finished_metrics(first)
    base = fingerprints(first.path / "base")
    shutil.rmtree(first.path)
    made["stages"].clear()
    other = train(*choices, *lengths, *sharing(tmp_path, "other"), "ppo.iterations=2")
    assert made["stages"] == ["ppo", "evaluate"]
    assert fingerprints(other.path / "base") == base, "the base is the same whoever asks for it first"
    config = (other.path / "sft" / "adapter_config.json").read_text()
    assert str(other.path / "base") in config
    assert str(first.path) not in config
    apart = train(*choices, *lengths, *placed(tmp_path / "apart"), "ppo.iterations=2", "cache=off")
    weights = "adapter_model.safetensors"
    for stage in ("sft", "ppo"):
        assert fingerprints(other.path / stage)[weights] == fingerprints(apart.path / stage)[weights]
    assert without_times(finished_metrics(other)["stages"]["sft"]) == without_times(figures["stages"]["sft"])


def test_two_runs_of_two_processes_each_share_a_cold_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhf_lightning", "train", *SMALLER, "trainer=ddp", "trainer.accelerator=cpu"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    runs = [
        subprocess.Popen(
            [*command, *sharing(tmp_path, name)],
            cwd=tmp_path,
            env={**alone, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [process.communicate(timeout=LIMIT)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    one, two = (RunDirectory.open(tmp_path / name) for name in ("one", "two"))
    assert artifacts(one) == artifacts(two)
    for stage in RLHF:
        figures = [finished_metrics(run)["stages"][stage] for run in (one, two)]
        assert sum("cache" in of_run for of_run in figures) == 1, "one made it and the other took it"


class Recorder:
    """Notes which keys of a config are read, by code that decides what a stage leaves."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.kept: list[Section] = []
        self.read: set[str] = set()

    def know(self, section: Section, prefix: str) -> None:
        """From now on what is read of this section, and of those in it, is noted under its dotted keys."""
        self.names[id(section)] = prefix
        self.kept.append(section)  # else another object could come to have its id
        for name in type(section).model_fields:
            value = object.__getattribute__(section, name)
            if isinstance(value, Section):
                self.know(value, f"{prefix}{name}.")

    def note(self, section: Section, name: str, module: str) -> None:
        inside = module.startswith(f"{NAME}.") and module != f"{NAME}.settings.section"
        looks_away = any(f"{module}.".startswith(f"{NAME}.{left_out}.") for left_out in DECIDES_NOTHING)
        if id(section) in self.names and inside and not looks_away and name in type(section).model_fields:
            value = object.__getattribute__(section, name)
            if not isinstance(value, Section):
                self.read.add(f"{self.names[id(section)]}{name}")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Recorder]]:
    """What each stage reads while it runs."""
    by_stage = {stage: Recorder() for stage in STAGE_NAMES}
    at_work: list[Recorder] = []
    get, copy = Section.__getattribute__, Section.model_copy

    def watched(section: Section, name: str) -> Any:
        if at_work and not name.startswith("_"):
            at_work[-1].note(section, name, sys._getframe(1).f_globals["__name__"])
        return get(section, name)

    def copied(section: Section, **changes: Any) -> Section:
        made = copy(section, **changes)
        if at_work and id(section) in at_work[-1].names:
            at_work[-1].know(made, at_work[-1].names[id(section)])
        return made

    def watching(stage: StageName, run_stage: Callable[[StageContext], StageResult]) -> Any:
        def run(context: StageContext) -> StageResult:
            by_stage[stage].know(context.settings, "")
            at_work.append(by_stage[stage])
            try:
                return run_stage(context)
            finally:
                at_work.pop()

        return run

    for stage, run_stage in list(STAGE_FUNCTIONS.items()):
        monkeypatch.setitem(STAGE_FUNCTIONS, stage, watching(stage, run_stage))
    with monkeypatch.context() as patch:
        patch.setattr(Section, "__getattribute__", watched)
        patch.setattr(Section, "model_copy", copied)
        yield by_stage


@pytest.mark.parametrize(
    "choices",
    [
        SMALLER,
        (*SMALLER, "peft=lora", "kl=adaptive", "ppo.critic=reward_model", "trainer=ddp", "trainer.devices=1"),
        (*SMALLER, "peft=top_layers", "ppo.critic=separate", "kl=none", "reward_model.head=classifier"),
        (*SMALLER, "peft=prompt_tuning", "reward=ensemble", "reward.models=[reward_model,reward_model]"),
        (*CONSTITUTIONAL, "ppo.iterations=1", "evaluate.satisfaction=4"),
        (
            *CONSTITUTIONAL,
            "ppo.iterations=1",
            "judge.mode=pairwise",
            "judge.principles=one",
            "judge.label=hard",
            "judge.clamp=null",
        ),
    ],
    ids=["as it is", "lora", "top_layers", "prompt_tuning", "constitutional", "pairwise"],
)
def test_what_a_stage_reads_is_in_its_key(
    recorded: dict[str, Recorder], choices: tuple[str, ...], tmp_path: Path
) -> None:
    run = train(*choices, "trainer.accelerator=cpu", "cache=off", *placed(tmp_path))
    settings = RunSettings.model_validate(run.config)
    for stage in settings.pipeline.stages:
        recorder = recorded[stage]
        in_key = frozenset(key for key, _ in settings_read(settings, stage))
        known = in_key | NAMES | FREE | IN_THE_KEY_OTHERWISE
        assert SEEN_TO_BE_READ[stage] <= recorder.read, "or the recorder sees nothing"
        whole = {key for key in recorder.read if any(one.startswith(f"{key}.") for one in in_key)}  # the optimizer's
        assert {key for key in recorder.read - whole if not is_among(key, known)} == set(), stage


def test_a_warning_names_an_entry_that_is_not_used(
    tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(*SMALLER, *sharing(tmp_path, "first"))
    key = finished_metrics(first)["stages"]["sft"]["key"]
    weights = tmp_path / "cache" / "sft" / key / "files" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-8] + b"damaged!")
    made["stages"].clear()
    with caplog.at_level(logging.WARNING):
        again = train(*SMALLER, *sharing(tmp_path, "again"))
    assert made["stages"] == ["sft"], "the stage alone is made again; its key is the same"
    assert "model.safetensors was changed" in caplog.text
    assert artifacts(again) == artifacts(first)
    assert main(["cache", "show", key, "--directory", str(tmp_path / "cache")]) == 0
