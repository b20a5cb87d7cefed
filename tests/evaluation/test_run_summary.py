"""The tables for people: every figure stands where it should, within a terminal's width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from rlhf_lightning.evaluation.summary import SampleRow, render_samples, render_summary, write_samples


def _shown(renderable: RenderableType, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text().splitlines()


def _line(lines: list[str], start: str) -> list[str]:
    return next(line for line in lines if line.strip().startswith(start)).split()


COURTESY = {
    "sft": {
        "iid": {"gold_reward": -0.5, "gold_reward_ci": [-0.61, -0.4], "harmful_rate": 0.44, "kl": 0.0, "eos_rate": 1.0},
        "ood": {"gold_reward": -0.6, "gold_reward_ci": [-0.7, -0.5], "harmful_rate": 0.46, "kl": 0.0, "eos_rate": 1.0},
    },
    "ppo": {
        "iid": {"gold_reward": 0.72, "gold_reward_ci": [0.6, 0.8], "harmful_rate": 0.0425, "kl": 3.21, "eos_rate": 1.0},
        "ood": {"gold_reward": 0.62, "gold_reward_ci": [0.5, 0.7], "harmful_rate": 0.06, "kl": 3.0, "eos_rate": 1.0},
    },
}


def test_two_policies_on_two_splits_fit_eighty_characters(tmp_path: Path) -> None:
    lines = _shown(render_summary({"evaluate": COURTESY}, tmp_path))
    assert _line(lines, "split") == ["split", "iid", "iid", "ood", "ood"]
    assert _line(lines, "policy") == ["policy", "sft", "ppo", "sft", "ppo"]
    assert _line(lines, "gold reward") == ["gold", "reward", "-0.50", "+0.72", "-0.60", "+0.62"]
    assert " ".join(_line(lines, "95% interval")).startswith("95% interval [-0.61, -0.40] [+0.60, +0.80]")
    assert _line(lines, "harmful") == ["harmful", "44.0%", "4.2%", "46.0%", "6.0%"]
    assert _line(lines, "KL") == ["KL,", "nats", "0.0", "3.2", "0.0", "3.0"]
    assert not any(line.strip().startswith("ended") for line in lines), "the courtesy world calls that malformed"
    assert not any("…" in line for line in lines), "nothing is cut off"


@pytest.mark.parametrize(("width", "tables"), [(50, 3), (80, 2), (120, 1)])
def test_splits_that_do_not_fit_beside_each_other_stand_below(tmp_path: Path, width: int, tables: int) -> None:
    evaluate = {policy: {**by_split, "validation": by_split["iid"]} for policy, by_split in COURTESY.items()}
    lines = _shown(render_summary({"evaluate": evaluate}, tmp_path), width)
    assert sum(line.split()[:1] == ["split"] for line in lines) == tables
    assert sum(line.count("[-0.61, -0.40]") for line in lines) == 2
    assert not any("…" in line for line in lines)


def test_real_data_shows_form_and_the_reward_model_beside_its_baselines(tmp_path: Path) -> None:
    metrics = {
        "evaluate": {"ppo": {"held_out": {"proxy_reward": 1.1, "kl": 9.0, "eos_rate": 0.25, "repetition": 0.5}}},
        "stages": {
            "reward_model": {
                "training_pairs": 6400,
                "accuracy": 0.57,
                "accuracy_ci": [0.54, 0.6],
                "pairs": 1200,
                "longer_accuracy": 0.45,
                "shorter_accuracy": 0.55,
                "lift": 0.02,
                "lift_ci": [-0.01, 0.05],
                "seconds": 30.0,
            },
            "ppo": {"seconds": 95.0},
        },
    }
    text = " ".join(" ".join(_shown(render_summary(metrics, tmp_path), width=200)).split())
    assert "ended 25.0%" in text
    assert "repetition 50.0%" in text
    assert "right on 57.0% [54.0%, 60.0%] of 1200 held-out pairs" in text
    assert "the longer response 45.0%, the shorter response 55.0%" in text
    assert "does not beat the better baseline: lift 2.0% [-1.0%, 5.0%]" in text
    assert "2 min 05 s (reward_model 30.0 s, ppo 1 min 35 s)" in text


def test_a_run_without_evaluation_still_says_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "history.csv").touch()
    lines = _shown(render_summary({"stages": {}}, tmp_path), width=200)
    assert str(tmp_path) in lines[0]
    assert _line(lines, "history.csv")[1:] == ["every", "figure", "logged"]
    assert not any("metrics.json" in line for line in lines), "it is not there"


ROWS = [
    SampleRow("iid", "how?", "[bold]no", "yes", proxy_before=-0.2, proxy_after=1.0, gold_before=0.0, gold_after=1.3),
    SampleRow("ood", "why?", "so", "so", proxy_before=0.5, proxy_after=0.25),
]


def test_samples_are_one_json_object_a_line(tmp_path: Path) -> None:
    write_samples(ROWS, tmp_path / "samples.jsonl")
    first, second = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert first["before"] == "[bold]no"
    assert first["gold_after"] == 1.3
    assert second["split"] == "ood"
    assert second["gold_before"] is None


def test_the_sample_table_shows_text_as_it_is_and_rewards_as_changes() -> None:
    text = "\n".join(_shown(render_samples(ROWS, "sft", "ppo"), width=120))
    assert "[bold]no" in text
    assert "-0.20 → +1.00" in text
    assert "+0.00 → +1.30" in text
    assert "+0.50 → +0.25" in text
    assert "? → ?" in text


@pytest.mark.parametrize("width", [60, 100])
def test_the_sample_table_without_gold_has_no_gold_column(width: int) -> None:
    text = "\n".join(_shown(render_samples(ROWS[1:], "sft", "ppo"), width))
    assert "proxy" in text
    assert "gold" not in text


def test_long_texts_are_cut_in_the_table_to_what_matters() -> None:
    row = SampleRow(split="held_out", prompt="P" * 500 + " the end", before="first " + "B" * 500, after="short")
    text = "\n".join(_shown(render_samples([row], "sft", "ppo"), width=160))
    assert "the end" in text
    assert "first" in text
    # 200 characters of each: " the end" leaves 192 for the rest, "first " 194.
    assert text.count("P") == 192
    assert text.count("B") == 194
