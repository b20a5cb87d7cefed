"""Constitutional AI in the embedded world at tiny sizes, through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CONSTITUTIONAL, assert_alike, finished_metrics, placed, read_jsonl, train

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment import pipeline
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.feedback.critique_revision import ChainWriter
from rlhf_lightning.feedback.labelling import Labeller
from rlhf_lightning.worlds.courtesy import gold

TINY = (
    *CONSTITUTIONAL,
    "trainer.threads=1",
    "critique_revision.batch_size=8",
    "critique_revision.held_out_fraction=0.3",
    "ai_feedback.batch_size=8",
    "callbacks.plots=true",
)
"""Chains and labels are made in three batches each."""

FEEDBACK = ("critique_revision", "ai_feedback")


@dataclass
class Watched:
    """How often the gold reward was computed in each stage."""

    run: RunDirectory
    scored: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A whole run, in which every gold score that is made is noted under the stage that made it."""
    directory = tmp_path_factory.mktemp("constitutional")
    scored: Counter[str] = Counter()
    running = ["before"]
    original = gold.GoldScore

    def noted(*arguments: Any, **named: Any) -> gold.GoldScore:
        scored[running[0]] += 1
        return original(*arguments, **named)

    def announced(stage: str, function: Any) -> Any:
        def run_stage(context: Any) -> Any:
            running[0] = stage
            try:
                return function(context)
            finally:
                running[0] = "between"

        return run_stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gold, "GoldScore", noted)  # the only way to a score: `gold.score` and `gold.judge` make it
        for stage, function in list(pipeline.STAGE_FUNCTIONS.items()):
            patch.setitem(pipeline.STAGE_FUNCTIONS, stage, announced(stage, function))
        run = train(*TINY, "cache=off", *placed(directory))
    return Watched(run, scored)


def test_the_gold_reward_is_not_computed_before_evaluation(watched: Watched) -> None:
    assert set(watched.scored) == {"evaluate"}
    assert watched.scored["evaluate"] >= 3 * 8  # three policies, eight prompts: the watch works


def test_chains_hold_every_text_and_where_it_came_from(watched: Watched) -> None:
    chains = read_jsonl(watched.run.path / "critique_revision" / "chains.jsonl")
    assert [chain["number"] for chain in chains] == list(range(24))
    config = watched.run.config
    ids = {principle["id"] for principle in config["constitution"]["principles"]}
    for chain in chains:
        assert chain["reply"]
        assert len(chain["steps"]) == config["constitution"]["revisions"] == 2
        assert all(step["principle"] in ids and step["critique"] and step["revision"] for step in chain["steps"])
        assert (chain["policy"], chain["reviser"]) == ("sft", "sft")
        assert isinstance(chain["seed"], int)
    figures = finished_metrics(watched.run)["stages"]["critique_revision"]
    assert {chain["constitution"] for chain in chains} == {figures["constitution_hash"]}
    assert figures["revisions"] == 48


def test_fine_tuning_gets_revisions_and_helpful_samples(watched: Watched) -> None:
    directory = watched.run.path / "critique_revision"
    chains, helpful = read_jsonl(directory / "chains.jsonl"), read_jsonl(directory / "helpful.jsonl")
    revisions = [step["revision"] for chain in chains for step in chain["steps"] if step["finished"]]
    samples = [row["reply"] for row in helpful if row["finished"]]
    assert [row["reply"] for row in read_jsonl(directory / "demonstrations.jsonl")] == revisions + samples
    assert len(helpful) == len(revisions)  # mix_helpful: 1.0
    assert finished_metrics(watched.run)["stages"]["revision_sft"]["demonstrations"] <= len(revisions + samples)


def test_labels_are_soft_and_name_the_likelier_reply(watched: Watched) -> None:
    directory = watched.run.path / "ai_feedback"
    labels = read_jsonl(directory / "labels.jsonl")
    assert len(labels) == 24
    assert all(len(row["pairs"]) == 3 for row in labels)  # three replies
    kept = read_jsonl(directory / "train.jsonl") + read_jsonl(directory / "held_out.jsonl")
    assert all(0.5 <= pair["probability"] <= 1.0 for pair in kept)
    by_reply = {
        (row["replies"][pair["first"]], row["replies"][pair["second"]]): pair["probability"]
        for row in labels
        for pair in row["pairs"]
    }
    for pair in kept:
        straight = by_reply.get((pair["chosen"], pair["rejected"]))
        crossed = by_reply.get((pair["rejected"], pair["chosen"]))
        assert pair["probability"] in {straight, None if crossed is None else 1.0 - crossed}


def test_the_calibration_is_reported(watched: Watched) -> None:
    directory = watched.run.path / "judge_calibration"
    figures = json.loads((directory / "calibration.json").read_text())
    assert figures["pairs"] == 40
    assert figures["verdict"] in (directory / "calibration.md").read_text()
    assert (directory / "reliability.png").stat().st_size > 10_000
    assert len(read_jsonl(directory / "judged.jsonl")) == 40


ALONE = (
    *(override for override in TINY if not override.startswith(("pipeline=", "evaluate."))),
    "pipeline.stages=[critique_revision,ai_feedback]",
    "critique_revision.policy_from=base",
    "critique_revision.reviser_from=base",
    "ai_feedback.policy_from=base",
    "ai_feedback.calibration_from=null",
    "cache=off",
)
"""Feedback and nothing else."""

MADE = {"critique_revision": "chains", "ai_feedback": "labels"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return train(*ALONE, *placed(tmp_path_factory.mktemp("uninterrupted")))


@pytest.mark.parametrize("stage", FEEDBACK)
def test_an_interrupted_stage_goes_on_after_its_last_whole_batch(
    stage: str, uninterrupted: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second of three batches: the first one is not made again, and all ends as if nothing had been."""
    owner, method = {"critique_revision": (ChainWriter, "write"), "ai_feedback": (Labeller, "labels")}[stage]
    original = getattr(owner, method)
    finished: list[int] = []

    def interrupted_once(self: Any, batch: Any, *others: Any) -> Any:
        if finished == [8]:
            finished.append(0)
            raise KeyboardInterrupt
        made = original(self, batch, *others)
        finished.append(8)
        return made

    monkeypatch.setattr(owner, method, interrupted_once)
    assert main(["train", *ALONE, *placed(tmp_path)]) == 130
    before = _written(tmp_path / "run" / stage)
    assert len(before) == 8
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert finished == [8, 0, 8, 8]
    assert read_jsonl(tmp_path / "run" / stage / f"{MADE[stage]}.jsonl")[:8] == before
    assert_alike(RunDirectory.open(tmp_path / "run"), uninterrupted)


@pytest.mark.parametrize("stage", FEEDBACK)
def test_a_killed_stage_loses_and_repeats_nothing(stage: str, uninterrupted: RunDirectory, tmp_path: Path) -> None:
    """SIGKILL of the process as soon as a batch is on the disk."""
    command = [sys.executable, "-m", "rlhf_lightning", "train", *ALONE, *placed(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not _written(tmp_path / "run" / stage):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = _written(tmp_path / "run" / stage)
    assert before
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    after = read_jsonl(tmp_path / "run" / stage / f"{MADE[stage]}.jsonl")
    assert after[: len(before)] == before
    assert len(after) == 24
    assert_alike(RunDirectory.open(tmp_path / "run"), uninterrupted)


def _written(directory: Path) -> list[dict[str, Any]]:
    """The whole batches' rows in the journal that the stage fills first."""
    found = list(directory.glob(f"{MADE[directory.name]}.*.part.jsonl"))
    lines = found[0].read_text(encoding="utf-8").split("\n")[:-1] if found else []
    return [row for line in lines for row in json.loads(line)]


def test_labels_of_a_judge_at_chance_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model never learned to compare two replies: pairwise it is at chance."""
    judge = ("judge.mode=pairwise", "judge_calibration.pairs=120", "ai_feedback.on_failed_calibration=refuse")
    alone = ("pipeline.stages=[judge_calibration,ai_feedback]", "ai_feedback.policy_from=base", "constitution=hhh")
    assert main(["train", "debug=tiny", "logger=none", *judge, *alone, "cache=off", *placed(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "no better than a trivial baseline" in said
    assert "ai_feedback.on_failed_calibration=warn" in said
    assert not list((tmp_path / "run" / "ai_feedback").glob("*"))


def test_without_principles_the_stages_run_as_a_control(tmp_path: Path) -> None:
    stages = "pipeline.stages=[critique_revision,judge_calibration,ai_feedback]"
    changed = ("constitution=none", stages, "ai_feedback.calibration_from=judge_calibration")
    kept = [one for one in ALONE if one.partition("=")[0] not in _keys(changed)]
    figures = finished_metrics(train(*kept, *changed, *placed(tmp_path)))["stages"]
    assert figures["critique_revision"]["revisions"] == 0
    assert figures["critique_revision"]["revisions_to_imitate"] > 0
    assert figures["ai_feedback"]["confidence"] == 0.5
    assert figures["ai_feedback"]["questions"] == 0


def _keys(overrides: tuple[str, ...]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def test_revisions_over_replies_are_comparisons_without_a_judge(watched: Watched, tmp_path: Path) -> None:
    chains = watched.run.path / "critique_revision"
    stages = ("pipeline=reward_model", "pipeline.stages=[reward_model]", "reward_model.backbone_from=base")
    sizes = ("debug=tiny", "logger=none", "reward_model.batch_size=4", "reward_model.micro_batch_size=4")
    run = train(*stages, *sizes, f"reward_model.comparisons_from={chains}", "cache=off", *placed(tmp_path))
    assert finished_metrics(run)["stages"]["reward_model"]["training_pairs"] == len(read_jsonl(chains / "train.jsonl"))


def test_the_judge_rates_how_far_replies_follow_each_principle(watched: Watched, tmp_path: Path) -> None:
    ppo = watched.run.path / "ppo"
    own = ("pipeline=evaluate", f"evaluate.policies=[{ppo}]", f"evaluate.reference_from={ppo}")
    sizes = ("debug=tiny", "logger=none", "evaluate.reward_from=null", "evaluate.splits=[iid]")
    run = train(*own, *sizes, "constitution=polite", "evaluate.satisfaction=8", "cache=off", *placed(tmp_path))
    figures = finished_metrics(run)["evaluate"][str(ppo)]["iid"]
    (principle,) = run.config["constitution"]["principles"]
    assert figures["satisfaction_count"] == {principle["id"]: 8}
    # The tiny model knows a polite opening when it sees one.
    assert figures["satisfaction"][principle["id"]] == pytest.approx(figures["trait_polite_rate"], abs=0.05)
