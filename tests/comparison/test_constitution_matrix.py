"""Whose principles whose policy follows: by traits, by a judge, over seeds, and what is left out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from constitution_runs import principle, write_constitutional
from matplotlib.image import imread

from rlhf_lightning.cli.constitution import main, scorer
from rlhf_lightning.comparison.constitution_matrix import constitution_matrix, scorer_of
from rlhf_lightning.errors import ComparisonError, ConfigError
from rlhf_lightning.runs.compose import conf_directory

HARMLESS = [principle("no_harm", "harmless")]
BOTH = [principle("no_harm", "harmless", 3.0), principle("kind", "polite", 1.0)]


def traits(harmless: float, polite: float) -> dict[str, dict[str, float]]:
    return {"iid": {"trait_harmless_rate": harmless, "trait_polite_rate": polite}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """`none`, `harmless` and `both`, two seeds each; evaluated before and after PPO."""
    home = tmp_path / "sweep"
    for seed in (1, 2):
        more = seed / 10
        before = {"revision_sft": traits(0.5, 0.0)}
        write_constitutional(home / f"0{seed}", "none", seed, {**before, "ppo": traits(0.5, more)})
        write_constitutional(
            home / f"1{seed}", "harmless", seed, {**before, "ppo": traits(0.9, 0.2)}, principles=HARMLESS
        )
        write_constitutional(home / f"2{seed}", "both", seed, {**before, "ppo": traits(0.8, more)}, principles=BOTH)
    return home


def test_a_cell_is_the_weighted_mean_of_the_traits_rates_over_seeds(sweep: Path) -> None:
    matrix = constitution_matrix(sweep, "iid")
    assert matrix.rows == ("none", "harmless", "both")
    assert matrix.columns == ("harmless", "both"), "none has nothing to score by"
    assert {place: cell.mean for place, cell in matrix.cells.items()} == pytest.approx(
        {
            ("none", "harmless"): 0.5,
            ("none", "both"): (3 * 0.5 + 0.15) / 4,
            ("harmless", "harmless"): 0.9,
            ("harmless", "both"): (3 * 0.9 + 0.2) / 4,
            ("both", "harmless"): 0.8,
            ("both", "both"): (3 * 0.8 + 0.15) / 4,
        }
    )
    cell = matrix.cells["both", "both"]
    # Seeds (2.4 + 0.1) / 4 and (2.4 + 0.2) / 4: 0.025 apart; t(1) = 12.706, half 12.706 * 0.025 / 2.
    assert cell.count == 2
    assert cell.high == pytest.approx(cell.mean + 0.15883, abs=1e-4)
    assert "Nothing to score by, so no column: none." in matrix.notes


def test_the_policy_and_the_split_can_be_chosen(sweep: Path) -> None:
    matrix = constitution_matrix(sweep, "iid", policy="revision_sft")
    assert {cell.mean for cell in matrix.cells.values()} == {0.5, 0.375}
    with pytest.raises(ComparisonError, match="No run says on split ood how far policy ppo follows") as caught:
        constitution_matrix(sweep, "ood", policy="ppo")
    assert "there are splits iid of policies revision_sft, ppo" in (caught.value.fix or "")


def test_further_constitutions_score_too(sweep: Path) -> None:
    further = [scorer_of("kindness", [principle("kind", "polite")]), scorer_of("harmless", [])]
    matrix = constitution_matrix(sweep, "iid", further=further)
    assert matrix.columns == ("harmless", "both", "kindness"), "a run's own constitution holds over one of its name"
    assert matrix.cells["harmless", "kindness"].mean == 0.2


def test_principles_without_a_trait_are_left_out_and_named(tmp_path: Path) -> None:
    principles = [principle("no_harm", "harmless"), principle("brave", None, weight=5.0)]
    write_constitutional(tmp_path / "a", "mine", 1, {"ppo": traits(0.75, 0.0)}, principles=principles)
    write_constitutional(tmp_path / "b", "only_brave", 1, {"ppo": traits(0.5, 0.0)}, principles=principles[1:])
    matrix = constitution_matrix(tmp_path, "iid")
    assert {place: cell.mean for place, cell in matrix.cells.items()} == {
        ("mine", "mine"): 0.75,
        ("only_brave", "mine"): 0.5,
    }
    assert "Left out of mine, since no trait stands for it: brave." in matrix.notes
    assert "Nothing to score by, so no column: only_brave." in matrix.notes
    assert any("one seed, so no interval" in note for note in matrix.notes)


def test_elsewhere_the_judge_of_a_run_scores_its_own_constitution(tmp_path: Path) -> None:
    judged = {"held_out": {"satisfaction": {"no_harm": 0.9, "kind": 0.5}}}
    write_constitutional(tmp_path / "a", "both", 1, {"ppo": judged}, principles=BOTH)
    write_constitutional(tmp_path / "b", "harmless", 1, {"ppo": judged}, principles=HARMLESS)
    matrix = constitution_matrix(tmp_path, "held_out")
    # (3 * 0.9 + 0.5) / 4; nothing is known of the other's constitution.
    assert {place: cell.mean for place, cell in matrix.cells.items()} == pytest.approx(
        {("both", "both"): 0.8, ("harmless", "harmless"): 0.9}
    )
    assert "By the run's own judge, which knows its own constitution alone: both, harmless." in matrix.notes
    assert not any("exact traits" in note for note in matrix.notes)


def test_a_missing_rate_leaves_a_cell_empty(tmp_path: Path) -> None:
    write_constitutional(tmp_path / "a", "both", 1, {"ppo": {"iid": {"trait_polite_rate": 0.5}}}, principles=BOTH)
    with pytest.raises(ComparisonError, match="No run says on split iid how far the policy evaluated last follows"):
        constitution_matrix(tmp_path, "iid")


def test_other_settings_are_averaged_within_a_seed(tmp_path: Path) -> None:
    for number, (kl_coef, rate) in enumerate(((0.1, 0.4), (0.2, 0.8))):
        run = tmp_path / str(number)
        write_constitutional(run, "harmless", 1, {"ppo": traits(rate, 0.0)}, principles=HARMLESS, kl_coef=kl_coef)
    write_constitutional(tmp_path / "x", "harmless", 2, {"ppo": traits(0.0, 0.0)}, state="failed")
    matrix = constitution_matrix(tmp_path, "iid")
    assert matrix.cells["harmless", "harmless"].mean == pytest.approx(0.6)
    assert matrix.cells["harmless", "harmless"].count == 1
    assert "Averaged within each seed over kl.coef." in matrix.notes
    assert "Not counted: x (failed)." in matrix.notes


def test_two_constitutions_of_one_name_are_refused(tmp_path: Path) -> None:
    write_constitutional(tmp_path / "a", "mine", 1, {"ppo": traits(0.5, 0.5)}, principles=HARMLESS)
    write_constitutional(tmp_path / "b", "mine", 1, {"ppo": traits(0.5, 0.5)}, principles=BOTH)
    with pytest.raises(ComparisonError, match="both called mine"):
        constitution_matrix(tmp_path, "iid")


def test_no_finished_run_is_refused(tmp_path: Path) -> None:
    write_constitutional(tmp_path / "a", "mine", 1, {"ppo": traits(0.5, 0.5)}, state="failed")
    with pytest.raises(ComparisonError, match="No finished run has a constitution"):
        constitution_matrix(tmp_path, "iid")


def test_the_command_prints_and_writes(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "out" / "matrix.csv", tmp_path / "out" / "matrix.png"
    assert main(["matrix", str(sweep), "--csv", str(table), "--png", str(picture), "--also", "harmless"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "trained under harmless both" in shown
    assert "none 50.0% ±0.0% 41.2% ±15.9%" in shown
    assert "harmless 90.0% ±0.0% 72.5% ±0.0%" in shown
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert (rows[0]["policy"], rows[0]["scored_by"], float(rows[0]["mean"]), rows[0]["count"]) == (
        "none",
        "harmless",
        0.5,
        "2",
    )
    image = imread(picture)[..., :3]
    assert (image < 0.9).any(axis=-1).mean() > 0.3, "cells are shaded"


def test_a_shipped_constitution_and_a_file_by_name(tmp_path: Path) -> None:
    shipped = [conf_directory()]
    assert {one.trait for one in scorer("harmless", shipped).principles} == {"harmless"}
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nextends: [harmless]\n")
    assert scorer(str(mine), shipped).name == "mine"
    assert scorer(str(mine), shipped).principles == scorer("harmless", shipped).principles
    with pytest.raises(ConfigError, match="harmles"):
        scorer("harmles", shipped)
