"""Constitutional AI in the embedded world at tiny sizes, through the real command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny_runs import CONSTITUTIONAL, assert_alike, finished_metrics, placed, read_jsonl, train

from rlhf_lightning.cli.main import main
from rlhf_lightning.feedback.critique_revision import ChainWriter
from rlhf_lightning.feedback.labeling import Labeler
from rlhf_lightning.stages.run_directory import RunDirectory

PROMPTS, BATCH = 12, 4
"""Of `CONSTITUTIONAL`, in both stages that make feedback."""


def test_the_gold_reward_is_not_computed_before_evaluation(constitutional: RunDirectory) -> None:
    scored = json.loads((constitutional.path.parent / "scored.json").read_text())
    assert set(scored) == {"evaluate"}
    assert scored["evaluate"] >= 3 * 8  # three policies, eight prompts: the watch works


def test_chains_hold_every_text_and_where_it_came_from(constitutional: RunDirectory) -> None:
    chains = read_jsonl(constitutional.path / "critique_revision" / "chains.jsonl")
    assert [chain["number"] for chain in chains] == list(range(PROMPTS))
    config = constitutional.config
    ids = {principle["id"] for principle in config["constitution"]["principles"]}
    for chain in chains:
        assert chain["response"]
        assert len(chain["steps"]) == config["constitution"]["revisions"] == 2
        assert all(step["principle"] in ids and step["critique"] and step["revision"] for step in chain["steps"])
        assert (chain["policy"], chain["reviser"]) == ("sft", "sft")
        assert isinstance(chain["seed"], int)
    figures = finished_metrics(constitutional)["stages"]["critique_revision"]
    assert {chain["constitution"] for chain in chains} == {figures["constitution_hash"]}
    assert figures["revisions"] == 2 * PROMPTS


def test_fine_tuning_gets_revisions_and_helpful_samples(constitutional: RunDirectory) -> None:
    directory = constitutional.path / "critique_revision"
    chains, helpful = read_jsonl(directory / "chains.jsonl"), read_jsonl(directory / "helpful.jsonl")
    revisions = [step["revision"] for chain in chains for step in chain["steps"] if step["finished"]]
    samples = [row["response"] for row in helpful if row["finished"]]
    assert [row["response"] for row in read_jsonl(directory / "demonstrations.jsonl")] == revisions + samples
    assert len(helpful) == len(revisions)  # mix_helpful: 1.0
    assert finished_metrics(constitutional)["stages"]["revision_sft"]["demonstrations"] <= len(revisions + samples)


def test_labels_are_soft_and_name_the_likelier_response(constitutional: RunDirectory) -> None:
    directory = constitutional.path / "ai_feedback"
    labels = read_jsonl(directory / "labels.jsonl")
    assert len(labels) == PROMPTS
    assert all(len(row["pairs"]) == 3 for row in labels)  # three responses
    kept = read_jsonl(directory / "train.jsonl") + read_jsonl(directory / "held_out.jsonl")
    assert all(0.5 <= pair["probability"] <= 1.0 for pair in kept)
    by_response = {
        (row["responses"][pair["first"]], row["responses"][pair["second"]]): pair["probability"]
        for row in labels
        for pair in row["pairs"]
    }
    for pair in kept:
        straight = by_response.get((pair["chosen"], pair["rejected"]))
        crossed = by_response.get((pair["rejected"], pair["chosen"]))
        assert pair["probability"] in {straight, None if crossed is None else 1.0 - crossed}


def test_the_calibration_is_reported(constitutional: RunDirectory) -> None:
    directory = constitutional.path / "judge_calibration"
    figures = json.loads((directory / "calibration.json").read_text())
    assert figures["pairs"] == 40
    assert figures["verdict"] in (directory / "calibration.md").read_text()
    assert len(read_jsonl(directory / "judged.jsonl")) == 40


ALONE = (
    *(override for override in CONSTITUTIONAL if not override.startswith(("pipeline=", "evaluate."))),
    "pipeline.stages=[critique_revision,ai_feedback]",
    "critique_revision.policy_from=base",
    "critique_revision.reviser_from=base",
    "ai_feedback.policy_from=base",
    "ai_feedback.calibration_from=null",
    "cache=off",
)
"""Feedback and nothing else."""

MADE = {"critique_revision": "chains", "ai_feedback": "labels"}


@pytest.fixture(scope="session")
def uninterrupted(once: Callable[..., Path]) -> RunDirectory:
    return RunDirectory.open(once("feedback", lambda directory: train(*ALONE, *placed(directory))) / "run")


def test_an_interrupted_stage_goes_on_after_its_last_whole_batch(
    uninterrupted: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second of each stage's three batches: the first one is not made again, and all ends as if nothing
    had been."""
    made: list[str] = []

    def interrupting(stage: str, original: Any) -> Any:
        def batch(*arguments: Any) -> Any:
            made.append(stage)
            if made.count(stage) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        return batch

    for stage, owner, method in (("critique_revision", ChainWriter, "write"), ("ai_feedback", Labeler, "labels")):
        monkeypatch.setattr(owner, method, interrupting(stage, getattr(owner, method)))
    run, before = tmp_path / "run", {}
    told = [*ALONE, *placed(tmp_path)]
    for stage in MADE:
        assert main(["train", *told]) == 130
        before[stage] = _written(run / stage)
        assert len(before[stage]) == BATCH
        told = [f"resume={run}"]
    assert main(["train", *told]) == 0
    assert [made.count(stage) for stage in MADE] == [4, 4], "three batches, and the one that was cut short"
    for stage, name in MADE.items():
        assert read_jsonl(run / stage / f"{name}.jsonl")[:BATCH] == before[stage]
    assert_alike(RunDirectory.open(run), uninterrupted)


def test_a_killed_stage_loses_and_repeats_nothing(uninterrupted: RunDirectory, tmp_path: Path) -> None:
    """SIGKILL of the process as soon as a batch of a stage is on the disk."""
    run, before = tmp_path / "run", {}
    told = [*ALONE, *placed(tmp_path)]
    for stage in MADE:
        process = forked.start(["train", *told])
        process.wait_for(lambda stage=stage: bool(_written(run / stage)))  # type: ignore[misc]
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before[stage] = _written(run / stage)
        assert before[stage]
        told = [f"resume={run}"]
    assert main(["train", *told]) == 0
    for stage, name in MADE.items():
        after = read_jsonl(run / stage / f"{name}.jsonl")
        assert after[: len(before[stage])] == before[stage]
        assert len(after) == PROMPTS
    assert_alike(RunDirectory.open(run), uninterrupted)


def _written(directory: Path) -> list[dict[str, Any]]:
    """The whole batches' rows in the journal that the stage fills first."""
    found = list(directory.glob(f"{MADE[directory.name]}.*.part.jsonl"))
    lines = found[0].read_text(encoding="utf-8").split("\n")[:-1] if found else []
    return [row for line in lines for row in json.loads(line)]


def test_labels_of_a_judge_at_chance_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model never learned to compare two responses: pairwise it is at chance."""
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


def test_revisions_over_responses_are_comparisons_without_a_judge(constitutional: RunDirectory, tmp_path: Path) -> None:
    chains = constitutional.path / "critique_revision"
    stages = ("pipeline=reward_model", "pipeline.stages=[reward_model]", "reward_model.backbone_from=base")
    sizes = ("debug=tiny", "logger=none", "reward_model.batch_size=4", "reward_model.micro_batch_size=4")
    run = train(*stages, *sizes, f"reward_model.comparisons_from={chains}", "cache=off", *placed(tmp_path))
    assert finished_metrics(run)["stages"]["reward_model"]["training_pairs"] == len(read_jsonl(chains / "train.jsonl"))


def test_the_judge_rates_how_far_responses_follow_each_principle(constitutional: RunDirectory, tmp_path: Path) -> None:
    ppo = constitutional.path / "ppo"
    own = ("pipeline=evaluate", f"evaluate.policies=[{ppo}]", f"evaluate.reference_from={ppo}")
    sizes = ("debug=tiny", "logger=none", "evaluate.reward_from=null", "evaluate.splits=[iid]")
    run = train(*own, *sizes, "constitution=polite", "evaluate.satisfaction=8", "cache=off", *placed(tmp_path))
    figures = finished_metrics(run)["evaluate"][str(ppo)]["iid"]
    (principle,) = run.config["constitution"]["principles"]
    assert figures["satisfaction_count"] == {principle["id"]: 8}
    # The tiny model knows a polite opening when it sees one.
    assert figures["satisfaction"][principle["id"]] == pytest.approx(figures["trait_polite_rate"], abs=0.05)
