"""The whole examination: causes, what follows from them, and the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made_runs import HEALTHY, ITERATIONS, line, make_record

from rlhf_lightning.cli.doctor import read_run
from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.doctor import CHECKS, Verdict, diagnose
from rlhf_lightning.evaluation.doctor_record import Severity

HISTORIES = Path(__file__).parent / "histories"
"""Made by `python scripts/broken_runs.py outputs/broken --record tests/evaluation/histories`."""

RECORDED = {
    "healthy": None,
    "learning_rate": "learning_rate_too_high",
    "no_kl": "no_kl_penalty",
    "temperature": "sampling_mismatch",
    "temperature_checked": "failed",
    "length": "length_gaming",
    "frozen_value": "critic_does_not_learn",
}


@pytest.mark.parametrize(("name", "cause"), RECORDED.items())
def test_the_cause_of_each_recorded_run_is_named_first(name: str, cause: str | None) -> None:
    diagnosis = diagnose(read_run(HISTORIES / name))
    if cause is None:
        assert diagnosis.verdict is Verdict.HEALTHY
        assert diagnosis.causes == ()
    else:
        assert diagnosis.verdict is Verdict.UNHEALTHY
        assert diagnosis.causes[0].name == cause


@pytest.mark.parametrize(
    ("name", "section", "innocent"),
    [
        ("length", "reward", {"length_penalty": 0.0}),
        ("frozen_value", "ppo", {"value_coef": 0.1}),
        ("no_kl", "kl", {"kind": "fixed", "coef": 0.04}),
    ],
)
def test_the_figures_alone_give_the_cause_away(name: str, section: str, innocent: dict[str, Any]) -> None:
    record = read_run(HISTORIES / name)
    config = {**record.config, section: {**record.config[section], **innocent}}
    assert diagnose(replace(record, config=config)).causes[0].name == RECORDED[name]


def test_a_recorded_run_says_what_made_it() -> None:
    assert {path.name for path in HISTORIES.iterdir()} == set(RECORDED)
    error = json.loads((HISTORIES / "temperature_checked" / "status.json").read_text())["error"]
    assert "sampled from another distribution" in error["what"]
    assert "temperature" in error["fix"]


def test_a_healthy_run_has_no_findings() -> None:
    diagnosis = diagnose(make_record())
    assert diagnosis.verdict is Verdict.HEALTHY
    assert diagnosis.causes == diagnosis.consequences == ()
    score = diagnosis.figures[0]
    assert (score.name, score.first, score.lowest, score.highest) == ("objective/score", 0.0, 0.0, 1.5)


@pytest.mark.parametrize("name", HEALTHY)
def test_no_metric_is_indispensable(name: str) -> None:
    record = make_record({kept: values for kept, values in HEALTHY.items() if kept != name}, only=True)
    assert diagnose(record).verdict is Verdict.HEALTHY


def test_a_run_without_ppo_is_examined_all_the_same() -> None:
    rows = [HistoryRow("sft", step, None, "sft/loss", 1.0 / step) for step in range(1, 9)]
    record = make_record(config={"pipeline": {"stages": ["sft"]}}, history=rows)
    diagnosis = diagnose(record)
    assert diagnosis.verdict is Verdict.HEALTHY
    assert diagnosis.figures == ()


def test_a_run_that_has_hardly_begun_is_not_called_healthy() -> None:
    few = {name: values[:3] for name, values in HEALTHY.items()}
    running = make_record(few, only=True, state="running", alive=True, stage="ppo")
    assert diagnose(running).verdict is Verdict.TOO_EARLY
    assert diagnose(make_record(few, only=True)).verdict is Verdict.HEALTHY  # it was meant to be this short


def test_symptoms_of_a_cause_stand_below_it() -> None:
    ruined = {
        "policy/approx_kl": [1.6, 8.3, *([0.0] * (ITERATIONS - 2))],
        "policy/clip_fraction": [0.22, 0.36, *([0.0] * (ITERATIONS - 2))],
        "objective/kl": [0.0, *([700.0] * (ITERATIONS - 1))],
        "objective/entropy": [0.5, *([0.0] * (ITERATIONS - 1))],
        "rollout/eos_rate": [1.0, *([0.0] * (ITERATIONS - 1))],
    }
    diagnosis = diagnose(make_record(ruined))
    assert [finding.name for finding in diagnosis.causes] == ["learning_rate_too_high"]
    assert {finding.name for finding in diagnosis.consequences} == {
        "exploding_kl",
        "entropy_collapse",
        "vanishing_eos",
    }


def test_a_note_explains_nothing_and_keeps_a_run_healthy() -> None:
    record = make_record({"kl/coef": [0.0] * ITERATIONS}, {"kl.kind": "none"})
    assert diagnose(record).verdict is Verdict.HEALTHY
    narrow = {"objective/entropy": [0.5, *([0.03] * (ITERATIONS - 1))]}
    diagnosis = diagnose(make_record(narrow, {"kl.kind": "none"}))
    assert diagnosis.verdict is Verdict.DOUBTFUL
    assert [(finding.name, finding.severity) for finding in diagnosis.causes] == [
        ("entropy_collapse", Severity.WARNING),
        ("no_kl_penalty", Severity.NOTE),
    ]


def test_the_last_figure_of_an_iteration_that_was_logged_twice_counts() -> None:
    once = make_record({"objective/score": line(0.0, 1.0, 3)}, only=True)
    again = [HistoryRow("ppo", 24, 384, "objective/score", 5.0)]
    record = make_record(history=[*once.history, *again])
    curve = record.ppo("objective/score")
    assert curve is not None
    assert curve.values == (0.0, 0.5, 5.0)


def test_a_finding_bears_the_name_of_its_check_and_explains_others_by_theirs() -> None:
    names = {check.__name__ for check in CHECKS}
    assert len(names) == len(CHECKS)
    wild = make_record(
        {
            "rollout/logprob_mismatch": [1.0] * ITERATIONS,
            "policy/clip_fraction": [0.5] * ITERATIONS,
            "policy/approx_kl": [1.0] * ITERATIONS,
            "objective/kl": line(0.0, 100.0),
            "objective/entropy": [0.5, *([0.0] * (ITERATIONS - 1))],
            "value/mean": line(0.0, 100.0),
            "value/explained_variance": [-1.0] * ITERATIONS,
            "rollout/length": line(12.0, 32.0),
            "rollout/eos_rate": line(1.0, 0.0),
            "kl/target": [6.0] * ITERATIONS,
        },
        {"kl.kind": "none", "reward.length_penalty": -0.1},
        state="failed",
        error="A rule broke.",
    )
    diagnosis = diagnose(wild)
    findings = (*diagnosis.causes, *diagnosis.consequences)
    assert len(findings) >= 12
    assert {finding.name for finding in findings} <= names
    assert {name for finding in findings for name in finding.explains} <= names
