"""compare.csv, runs.csv and compare.md, read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from report_runs import compared, write_run, write_sweep

from rlhf_lightning.comparison.files import markdown, write_files
from rlhf_lightning.comparison.metrics import metric
from rlhf_lightning.comparison.records import Delta, Estimate
from rlhf_lightning.comparison.tables import delta_cell, mean_cell
from rlhf_lightning.errors import ComparisonError


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_written_and_named(tmp_path: Path) -> None:
    comparison = compared(write_sweep(tmp_path / "sweep"))
    files = write_files(comparison, tmp_path / "out" / "deep")
    assert [file.name for file in files] == ["compare.csv", "runs.csv", "compare.md", "report.html"]
    assert all(file.stat().st_size > 500 for file in files)


def test_a_row_of_compare_csv_is_a_group_with_numbers_in_full(tmp_path: Path) -> None:
    comparison = compared(write_sweep(tmp_path / "sweep"), baseline="first")
    rows = read(write_files(comparison, tmp_path)[0])
    assert [(row["kl.coef"], row["peft"]) for row in rows] == [
        *(("0.1", "none"), ("0.1", "lora"), ("0.02", "none"), ("0.02", "lora"), ("0.5", "none"), ("0.5", "lora")),
    ]
    best, first, broken = rows[0], rows[2], rows[-1]
    assert (best["runs"], best["finished"], broken["finished"]) == ("3", "3", "2")
    assert (first["baseline"], best["baseline"]) == ("True", "False")
    assert float(best["objective.mean"]) == pytest.approx(0.97)
    assert best["objective.count"] == "3"
    assert float(best["objective.delta.mean"]) == pytest.approx(0.2)
    assert best["objective.delta.method"] == "paired"
    assert (first["objective.delta.mean"], first["objective.delta.method"]) == ("", "")


def test_a_row_of_runs_csv_is_a_run_with_every_figure(tmp_path: Path) -> None:
    rows = read(write_files(compared(write_sweep(tmp_path / "sweep"), by=("seed",)), tmp_path)[1])
    assert [row["run"] for row in rows] == [str(job) for job in range(18)]
    assert rows[0]["directory"] == str(tmp_path / "sweep" / "0")
    assert (rows[17]["kl.coef"], rows[17]["peft"], rows[17]["seed"]) == ("0.5", "lora", "3")
    assert float(rows[17]["sft.iid.gold_reward"]) == -0.5
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["objective"] for row in failed] == [""]


def test_markdown_holds_both_tables_how_they_were_made_and_what_is_missing(tmp_path: Path) -> None:
    lines = markdown(compared(write_sweep(tmp_path))).splitlines()
    assert lines[0] == "# Comparison"
    assert lines[2] == "18 runs in 6 groups, 17 finished."
    assert lines[4].startswith("| kl.coef | peft | runs | n | objective | gold reward, iid |")
    assert lines[6].startswith("| 0.1 | none | 3 | 3 | +0.97 ±0.02 |")
    assert "## Less kl.coef=0.1 peft=none" in lines
    assert "- 15: failed in stage ppo: The loss is not finite." in lines
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(tables) == 2 + 6 + 2 + 5


def test_what_would_break_a_markdown_table_is_escaped(tmp_path: Path) -> None:
    for job, model in enumerate(("a|b", "c")):
        write_run(tmp_path / str(job), settings={"model.name_or_path": model})
    assert "| a\\|b | 1 |" in markdown(compared(tmp_path))


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    comparison = compared(write_run(tmp_path / "run"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(ComparisonError, match="cannot be written") as caught:
        write_files(comparison, tmp_path / "taken" / "here")
    assert caught.value.fix == "choose another place: --out DIR"


@pytest.mark.parametrize(
    ("name", "mean", "half", "text"),
    [
        ("objective", 0.424, 0.081, "+0.42 ±0.08"),
        ("objective", -0.001, None, "+0.00"),
        ("iid.harmful_rate", 0.041, 0.005, "4.1% ±0.5%"),
        ("iid.kl", 3.344, 0.5, "3.34 ±0.50"),
        ("seconds", 903.7, 12.2, "904 ±12"),
        ("sft.validation_loss", 0.50449, 0.01234, "0.504 ±0.012"),
        ("ppo.episodes", 9600.0, 0.0, "9600 ±0"),
        ("ppo.reward_mean", 0.0, 0.0, "0.00 ±0.00"),
        ("ppo.learning_rate", 1e-9, None, "0.000000"),
    ],
)
def test_a_mean_and_its_interval_have_the_same_decimals(name: str, mean: float, half: float | None, text: str) -> None:
    bounds = (None, None) if half is None else (mean - half, mean + half)
    assert mean_cell(Estimate(mean, *bounds, 3), metric(name)) == text


def test_a_difference_has_its_sign_and_says_where_it_is_unpaired() -> None:
    assert delta_cell(Delta(3.0, 2.0, 4.0, 2, "unpaired"), metric("iid.kl")) == "+3.00 ±1.00 u"
    assert delta_cell(Delta(-0.125, None, None, 1, "no interval"), metric("iid.rude_rate")) == "-12.5%"
    assert delta_cell(None, metric("objective")) == mean_cell(None, metric("objective")) == "-"
