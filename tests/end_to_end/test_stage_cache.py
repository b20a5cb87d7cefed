"""The stage cache in real runs: what is taken is what would have been made, and keys hold what stages read."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import matplotlib.image
import pytest
from reads import recording
from tiny_runs import (
    ADAPTED,
    CONSTITUTIONAL,
    SMALL,
    TINY,
    cut_short_in_iteration,
    fingerprints,
    finished_metrics,
    placed,
    read_jsonl,
    train,
    without_times,
)

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs.identity import settings_read
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.readers import is_among, names_only, without_effect
from rlhf_lightning.stages.run_directory import RunDirectory

RLHF: tuple[str, ...] = ("sft", "comparisons", "reward_model", "ppo", "evaluate")
"""The stages of the default pipeline."""

IN_THE_KEY_OTHERWISE = frozenset(
    {"trainer", "model", "data", "seed", "peft.kind", "evaluate.policies", "allow_targets"}
)
"""Hardware, base model and records are in keys under names of their own; kinds choose among what is there."""

SEEN_TO_BE_READ = {
    "sft": {"sft.epochs", "sft.learning_rate", "data.demonstrations", "seed"},
    "comparisons": {"rollout.temperature", "data.pairing", "comparisons.responses"},
    "reward_model": {"reward_model.epochs", "measurement.bootstrap_samples", "measurement.seed"},
    "ppo": {"ppo.clip_range", "advantage.gae_lambda", "reward.scale", "rollout.temperature"},
    "evaluate": {"evaluate.temperature", "rollout.max_new_tokens"},
    "critique_revision": {"constitution.revisions", "constitution.principles", "critique_revision.temperature"},
    "revision_sft": {"revision_sft.epochs", "revision_sft.learning_rate", "seed"},
    "judge_calibration": {"judge.mode", "constitution.principles", "judge_calibration.pairs"},
    "ai_feedback": {"judge.principles", "judge.label", "rollout.temperature", "ai_feedback.responses"},
}

Made = dict[str, list[str]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The stages that were really run, in order."""
    stages: Made = {"stages": []}

    def counted(run_stage: Callable[[StageContext], StageResult]) -> Any:
        def count(context: StageContext) -> StageResult:
            stages["stages"].append(context.name)
            return run_stage(context)

        return count

    for stage in STAGES.values():
        monkeypatch.setattr(stage, "run", counted(stage.run))
    return stages


def sharing(directory: Path, name: str) -> list[str]:
    """Overrides of a run of that name, which has its cache in common with the others in that directory."""
    return [f"paths.outputs={directory}", f"paths.run_dir={directory / name}"]


def artifacts(run: RunDirectory) -> dict[str, str]:
    """A hash of every file that the stages left, of the figures and of the samples."""
    places = (*RLHF, "history.csv", "samples.jsonl")
    return {path: digest for path, digest in fingerprints(run.path).items() if path.split("/")[0] in places}


def test_what_is_taken_is_what_was_made(
    tiny: RunDirectory, filled: Callable[[str], Path], made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("name=other", "trainer.threads=1", "callbacks.save_every=3", "callbacks.plots=true")
    again = train(*TINY, *sharing(filled("outputs"), "again"), *others)
    assert made["stages"] == []
    assert artifacts(again) == artifacts(tiny)
    assert without_times(finished_metrics(again)) == without_times(finished_metrics(tiny))
    assert list(finished_metrics(again)["stages"]) == list(RLHF)
    assert again.status.artifacts == tiny.status.artifacts
    for stage, figures in finished_metrics(again)["stages"].items():
        before = finished_metrics(tiny)["stages"][stage]
        assert figures["key"] == before["key"]
        assert figures["cache"]["made_by"] == str(tiny.path)
        assert figures["cache"]["seconds"] == before["seconds"]
        assert "cache" not in before
    said = capsys.readouterr()
    assert said.err.count("taken from the cache (made") == len(RLHF)
    assert "From the cache sft, comparisons, reward_model, ppo, evaluate" in " ".join(said.out.split())

    assert {path.stem for path in (again.path / "plots").iterdir()} == {
        "learning_curves",
        "overoptimization",
        "evaluation",
    }
    for path in (again.path / "plots").iterdir():
        pixels = matplotlib.image.imread(path, format="png")
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.05, "the picture is not empty"


def test_another_coefficient_reuses_what_it_does_not_concern(
    filled: Callable[[str], Path], tmp_path: Path, made: Made
) -> None:
    outputs, choices = filled("outputs"), (*TINY, "kl.coef=0.5", "evaluate.splits=[iid]")
    other = train(*choices, *sharing(outputs, "other"))
    assert made["stages"] == ["ppo", "evaluate"]
    apart = train(*choices, *placed(tmp_path / "apart"), "cache=off")
    for stage in RLHF:
        assert fingerprints(other.path / stage) == fingerprints(apart.path / stage), (
            "from taken stages as from made ones"
        )
    made["stages"].clear()
    train(*choices, "evaluate.temperature=0.7", *sharing(outputs, "reader"), "cache=read_only")
    train(*choices, "evaluate.temperature=0.7", *sharing(outputs, "same"))
    assert made["stages"] == ["evaluate"] * 2, "read_only takes, and leaves nothing"


def test_taken_files_cannot_be_written_and_nothing_tries(
    tiny: RunDirectory, filled: Callable[[str], Path], tmp_path: Path
) -> None:
    outputs = filled("outputs")
    again = train(*TINY, *sharing(outputs, "again"))
    weights = again.path / "sft" / "model.safetensors"
    key = finished_metrics(tiny)["stages"]["sft"]["key"]
    for other in (tiny.path / "sft", outputs / "cache" / "sft" / key / "files"):
        assert weights.samefile(other / weights.name), "the maker, the cache and the taker have one file"
    assert weights.stat().st_mode & 0o222 == 0
    assert main(["export", str(again.path), "--stage", "sft", "--to", str(tmp_path / "exported")]) == 0
    exported = tmp_path / "exported" / "model.safetensors"
    assert exported.read_bytes() == weights.read_bytes()
    assert exported.stat().st_nlink == 1
    with (again.path / "ppo" / "sample_log.jsonl").open("a") as sample_log:
        sample_log.write("{}\n")
    assert len(read_jsonl(again.path / "ppo" / "sample_log.jsonl")) == 1 + len(
        read_jsonl(tiny.path / "ppo" / "sample_log.jsonl")
    )


def test_a_stage_that_was_cut_short(filled: Callable[[str], Path], made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken if another run has finished it; one that went on is kept as if it had never been cut short."""
    sizes = (*TINY, "kl.coef=0.3", "evaluate.splits=[iid]")
    one, other = filled("one"), filled("other")
    with cut_short_in_iteration(1, monkeypatch):
        for outputs in (one, other):
            assert main(["train", *sizes, *sharing(outputs, "cut")]) == 130
    cut = RunDirectory.open(one / "cut")
    assert list(cut.checkpoint_dir("ppo").glob("*.ckpt"))
    whole = train(*sizes, *sharing(one, "whole"))
    made["stages"].clear()
    assert main(["train", f"resume={cut.path}"]) == 0
    assert made["stages"] == []
    assert artifacts(cut) == artifacts(whole)
    assert not (cut.path / "checkpoints").exists()

    assert main(["train", f"resume={other / 'cut'}"]) == 0
    assert made["stages"] == ["ppo", "evaluate"]
    made["stages"].clear()
    taken = train(*sizes, *sharing(other, "taken"))
    assert made["stages"] == []
    assert fingerprints(taken.path / "ppo") == fingerprints(whole.path / "ppo")


def test_an_adapter_on_a_model_from_scratch_outlives_the_run_that_made_it(tmp_path: Path, made: Made) -> None:
    scratch = ("model=scratch", "model.vocab_size=300", "model.hidden_size=16", "model.heads=2", "model.layers=1")
    choices = (
        *SMALL,
        "ppo.iterations=1",
        "evaluate.splits=[iid]",
        *scratch,
        "peft=lora",
        "peft.rank=2",
        "reward.standardize_on_reference=null",
    )
    lengths = ("data.max_prompt_length=160", "data.max_response_length=160", "rollout.max_new_tokens=8")
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
    stages = ("sft", "comparisons")
    command = ["train", *SMALL, f"pipeline.stages=[{','.join(stages)}]", "trainer=ddp", "trainer.accelerator=cpu"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    environment = {**alone, "OMP_NUM_THREADS": "1"}
    processes = [
        forked.start([*command, *sharing(tmp_path, name)], cwd=tmp_path, env=environment) for name in ("one", "two")
    ]
    assert [process.wait() for process in processes] == [0, 0], [process.stderr for process in processes]
    one, two = (RunDirectory.open(tmp_path / name) for name in ("one", "two"))
    assert artifacts(one) == artifacts(two)
    for stage in stages:
        figures = [finished_metrics(run)["stages"][stage] for run in (one, two)]
        assert sum("cache" in of_run for of_run in figures) == 1, "one made it and the other took it"


def assert_in_keys(run: RunDirectory, reads: dict[str, list[str]]) -> None:
    """What each stage of a run read is in its key."""
    settings = settings_from(run.config)
    for stage in settings.pipeline.stages:
        read = set(reads[stage])
        in_key = frozenset(key for key, _ in settings_read(settings, stage))
        known = in_key | names_only(settings, stage) | without_effect(type(settings)) | IN_THE_KEY_OTHERWISE
        assert SEEN_TO_BE_READ[stage] <= read, "or the recorder sees nothing"
        whole = {key for key in read if any(one.startswith(f"{key}.") for one in in_key)}  # the optimizer's
        assert {key for key in read - whole if not is_among(key, known)} == set(), stage


@pytest.mark.parametrize(
    "kind",
    [
        "tiny",
        "constitutional",
        *(pytest.param(kind, marks=() if kind == "lora" else pytest.mark.slow) for kind in ADAPTED),
    ],
)
def test_what_a_stage_reads_is_in_its_key(
    kind: str, adapted: Callable[[str], RunDirectory], request: pytest.FixtureRequest
) -> None:
    run: RunDirectory = adapted(kind) if kind in ADAPTED else request.getfixturevalue(kind)
    beside = next(parent for parent in run.path.parents if (parent / "reads.json").exists())
    assert_in_keys(run, json.loads((beside / "reads.json").read_text()))


def test_what_a_judge_of_two_responses_at_once_reads_is_in_its_keys(tmp_path: Path) -> None:
    stages = ("pipeline.stages=[judge_calibration,ai_feedback]", "ai_feedback.policy_from=base")
    judge = ("judge.mode=pairwise", "judge.principles=one", "judge.label=hard", "judge.clamp=null")
    left_out = ("pipeline=", "critique_revision.", "evaluate.")
    sizes = [override for override in CONSTITUTIONAL if not override.startswith(left_out)]
    with recording() as reads:
        run = train(*sizes, *stages, *judge, "judge_calibration.pairs=20", *placed(tmp_path))
    assert_in_keys(run, reads())


def test_a_warning_names_an_entry_that_is_not_used(
    tiny: RunDirectory, filled: Callable[[str], Path], made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = filled("outputs")
    key = finished_metrics(tiny)["stages"]["sft"]["key"]
    weights = outputs / "cache" / "sft" / key / "files" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-8] + b"damaged!")
    with caplog.at_level(logging.WARNING):
        again = train(*TINY, *sharing(outputs, "again"))
    assert made["stages"] == ["sft"], "the stage alone is made again; its key is the same"
    assert "model.safetensors was changed" in caplog.text
    assert artifacts(again) == artifacts(tiny)
    assert main(["cache", "show", key, "--directory", str(outputs / "cache")]) == 0
