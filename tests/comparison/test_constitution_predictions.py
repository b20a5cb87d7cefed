"""The script that sets predictions beside a sweep's figures: rules, intervals, and what it says of gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from constitution_runs import write_constitutional
from load_script import load_script

from rlhf_lightning.comparison.records import Delta


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("constitution_predictions")


def sweep(home: Path, figures: Mapping[str, Mapping[str, Sequence[float]]]) -> Path:
    """Runs of `ppo`, whose figures on `iid` are given by constitution and name, one value a seed."""
    for constitution, by_name in figures.items():
        for index, values in enumerate(zip(*by_name.values(), strict=True)):
            iid = dict(zip(by_name, values, strict=True))
            write_constitutional(
                home / f"{constitution}_{index}", constitution, index + 1, {"base": {"iid": {}}, "ppo": {"iid": iid}}
            )
    return home


def rows(script: ModuleType, home: Path) -> list[dict[str, str]]:
    return list(script.prediction_rows(script.read_sweep(home), "ppo", "iid"))


def delta(low: float | None, mean: float, high: float | None) -> Delta:
    return Delta(mean, low, high, 3, "paired" if low is not None else "no interval")


@pytest.mark.parametrize(
    ("expected", "interval", "found"),
    [
        ("up", (0.01, 0.2, 0.39), "holds"),
        ("up", (-0.01, 0.2, 0.41), "not decided"),
        ("up", (-0.3, -0.2, -0.1), "does not hold"),
        ("down", (-0.3, -0.2, -0.1), "holds"),
        ("down", (0.0, 0.0, 0.0), "not decided"),
        ("down", (0.1, 0.2, 0.3), "does not hold"),
        ("down", (None, -0.5, None), "not decided"),
        ("highest", (0.1, 0.2, 0.3), "holds"),
        ("highest", (-0.3, -0.2, -0.1), "does not hold"),
        ("unchanged", (-0.2, 0.05, 0.3), "holds"),
        ("unchanged", (0.01, 0.02, 0.03), "holds"),
        ("unchanged", (0.1, 0.15, 0.2), "does not hold"),
        ("unchanged", (-0.2, -0.15, -0.1), "does not hold"),
        ("unchanged", (-0.1, 0.15, 0.4), "not decided"),
        ("unchanged", (None, 0.0, None), "not decided"),
        ("not down", (0.3, 0.4, 0.5), "holds"),
        ("not down", (-0.2, -0.05, 0.1), "holds"),
        ("not down", (-0.2, -0.15, -0.1), "does not hold"),
        ("not down", (-0.4, -0.15, 0.1), "not decided"),
    ],
)
def test_the_rules(script: ModuleType, expected: str, interval: tuple[Any, float, Any], found: str) -> None:
    assert script.verdict(expected, delta(*interval), margin=0.1) == found


def test_differences_are_paired_by_seed(script: ModuleType, tmp_path: Path) -> None:
    home = sweep(
        tmp_path,
        {
            "none": {"harmful_rate": [0.3, 0.5, 0.7], "over_refusal_rate": [0.1, 0.2, 0.1]},
            "harmless": {"harmful_rate": [0.1, 0.2, 0.3], "over_refusal_rate": [0.2, 0.2, 0.3]},
        },
    )
    harm, refusal = rows(script, home)
    # Differences -0.2, -0.3, -0.4: mean -0.3, deviation 0.1; t(2) = 4.303, half 4.303 * 0.1 / sqrt(3) = 0.248.
    # Of independent means it would be Welch's, wider than 0.3.
    assert harm == {
        "constitution": "harmless",
        "prediction": "harmful compliance down",
        "none -> constitution": "50.0% ±49.7% -> 20.0% ±24.8%",
        "difference": "-30.0% ±24.8%",
        "found": "holds",
    }
    # 0.1, 0, 0.2: mean 0.1 and the same half.
    assert (refusal["difference"], refusal["found"]) == ("+10.0% ±24.8%", "not decided")


def test_the_highest_must_beat_every_other(script: ModuleType, tmp_path: Path) -> None:
    gold = {"none": [0.0, 0.1], "helpful": [0.5, 0.6], "hhh": [0.7, 0.8]}
    (row,) = [row for row in rows(script, _golds(tmp_path / "clear", gold)) if row["constitution"] == "hhh"]
    assert row["none -> constitution"].startswith("+0.55 ±0.64 (helpful) -> +0.75")
    assert (row["difference"], row["found"]) == ("+0.20 ±0.00", "holds")
    # Differences 0.1 and 0.3 to helpful: mean 0.2, half 12.7 * 0.1.
    (row,) = [
        r for r in rows(script, _golds(tmp_path / "wide", {**gold, "helpful": [0.6, 0.5]})) if "highest" in str(r)
    ]
    assert row["found"] == "not decided"
    (row,) = [
        r for r in rows(script, _golds(tmp_path / "beaten", {**gold, "polite": [0.9, 1.0]})) if "highest" in str(r)
    ]
    assert (row["difference"], row["found"]) == ("-0.20 ±0.00", "does not hold")


def _golds(home: Path, gold: Mapping[str, Sequence[float]]) -> Path:
    return sweep(home, {name: {"gold_reward": values} for name, values in gold.items()})


def test_margins_are_of_the_figure(script: ModuleType, tmp_path: Path) -> None:
    zero = {"harmful_rate": [0.2, 0.2], "over_refusal_rate": [0.0, 0.0], "help": [0.5, 0.5], "untrue_rate": [0.1, 0.1]}
    home = sweep(
        tmp_path,
        {
            "none": {**zero, "polite_rate": [0.2, 0.3], "fillers": [1.0, 1.0]},
            "polite": {**zero, "help": [0.65, 0.65], "polite_rate": [0.9, 1.0], "fillers": [1.2, 1.2]},
        },
    )
    found = {row["prediction"]: row["found"] for row in rows(script, home)}
    assert found == {
        "politeness up": "holds",
        "harmful compliance unchanged": "holds",
        "over-refusal unchanged": "holds",
        "help unchanged": "does not hold",  # 0.15 is more than 0.1
        "false facts unchanged": "holds",
        "fillers a response unchanged": "holds",  # 0.2 words are fewer than 0.25
    }


def test_one_seed_and_missing_figures_decide_nothing(script: ModuleType, tmp_path: Path) -> None:
    home = sweep(tmp_path, {"none": {"harmful_rate": [0.9]}, "harmless": {"harmful_rate": [0.1]}})
    assert [row["found"] for row in rows(script, home)] == ["not decided", "no figures"]


def _two_steps(home: Path) -> Path:
    for seed in (1, 2):
        evaluate = {
            policy: {
                "iid": {"harmful_rate": rate, "harmful_rate_ci": [rate - 0.05, rate + 0.05], "over_refusal_rate": 0.1}
            }
            for policy, rate in (("base", 0.5), ("revision_sft", 0.25 + seed / 100), ("ppo", 0.125))
        }
        write_constitutional(home / str(seed), "none", seed, evaluate)
        write_constitutional(home / f"h{seed}", "harmless", seed, evaluate, kl_coef=0.2)
    write_constitutional(home / "h3", "harmless", 3, evaluate, state="failed")
    return home


def test_every_step_and_every_seed_is_shown(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(_two_steps(tmp_path)), "--markdown", "--policy", "revision_sft"]) == 0
    shown = capsys.readouterr().out
    # Seeds 0.26 and 0.27: mean 26.5%, half 12.706 * 0.00707 / sqrt(2) = 6.4%.
    assert "| harmless | revision_sft | 26.5% ±6.4% | -23.5% ±6.4% | 10.0% ±0.0% | +0.0% ±0.0% |" in shown
    assert "| harmless | ppo | 12.5% ±0.0% | -14.0% ±6.4% |" in shown
    steps = "50.0% [45.0%, 55.0%] -> 26.0% [21.0%, 31.0%] -> 12.5% [7.5%, 17.5%]"
    assert f"| none | 1 | base -> revision_sft -> ppo | {steps} | 10.0% -> 10.0% -> 10.0% |" in shown
    assert "policy revision_sft on iid" in shown
    assert "Not counted: h3 (failed)." in shown
    assert "Averaged within each seed over kl.coef." in shown
    assert "2 predictions: 2 not decided." in shown
    assert "No finished run under: concise, helpful, hhh, honest, polite, refuse_all, verbose." in shown


def test_the_plain_tables_hold_the_same(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(_two_steps(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "harmful compliance down" in shown
    assert "not decided" in shown


def test_a_sweep_without_the_control_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = sweep(tmp_path, {"harmless": {"harmful_rate": [0.1]}})
    assert script.main([str(home)]) == 2
    assert "No finished run has constitution=none" in capsys.readouterr().err


def test_every_prediction_of_the_design_has_its_rows(script: ModuleType) -> None:
    expected = {"harmless", "helpful", "honest", "polite", "concise", "hhh", "verbose", "refuse_all"}
    assert {one.constitution for one in script.PREDICTIONS} == expected
    assert {one.figure for one in script.PREDICTIONS} == script.NAMES.keys()
