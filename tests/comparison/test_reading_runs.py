"""Finding runs, and reading those that are broken, unfinished or of another version."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from report_runs import write_json, write_run

from rlhf_lightning.comparison.reading import find_runs, read_run, short_names
from rlhf_lightning.errors import ComparisonError


def test_a_run_a_sweep_and_a_folder_of_sweeps_are_found_in_order(tmp_path: Path) -> None:
    jobs = [write_run(tmp_path / "outputs" / "multirun" / "2026-11-22" / "10-00" / str(job)) for job in (10, 2, 0)]
    alone = write_run(tmp_path / "outputs" / "runs" / "2026-11-22" / "09-00")
    ordered = [jobs[2], jobs[1], jobs[0]]
    assert find_runs([alone]).directories == [alone]
    assert find_runs([jobs[0].parent]).directories == ordered
    assert find_runs([tmp_path / "outputs"]).directories == [*ordered, alone]


def test_folders_within_a_run_links_and_hidden_folders_are_passed_by(tmp_path: Path) -> None:
    run = write_run(tmp_path / "outputs" / "runs" / "1")
    write_run(run / "inner")
    write_run(tmp_path / "outputs" / ".trash" / "1")
    (tmp_path / "outputs" / "latest").symlink_to("runs/1", target_is_directory=True)
    found = find_runs([tmp_path / "outputs"])
    assert found.directories == [run]
    assert found.repeated == []


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "1")
    link = tmp_path / "latest"
    link.symlink_to(run, target_is_directory=True)
    found = find_runs([run, tmp_path / "runs", link])
    assert found.directories == [run]
    assert found.repeated == [run, run]


def test_a_directory_without_runs_beside_one_with_some_is_named(tmp_path: Path) -> None:
    run, empty, file = write_run(tmp_path / "1"), tmp_path / "empty", tmp_path / "latest.txt"
    empty.mkdir()
    file.write_text("elsewhere")
    assert find_runs([run, empty, file]).without == [empty, file]


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="no run here") as caught:
        find_runs([tmp_path])
    assert caught.value.exit_code == 2
    with pytest.raises(ComparisonError, match="no such directory"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_passed_by(tmp_path: Path) -> None:
    run, closed = write_run(tmp_path / "1"), tmp_path / "closed"
    closed.mkdir(mode=0o000)
    assert find_runs([tmp_path]).directories == [run]


def test_everything_of_a_finished_run_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "7", seed=3, objective=0.5, overrides=["kl.coef=0.1", "seed=3"]), "7")
    assert (run.name, run.state, run.seed, run.stage, run.error) == ("7", "finished", 3, None, None)
    assert run.overrides == ("kl.coef=0.1", "seed=3")
    assert run.config["evaluate.policies"] == ["sft", "ppo"]
    assert run.seconds == 125.0
    assert run.finished
    assert run.objective == 0.5
    assert run.read_problems == run.late_problems == ()
    assert [row.split for row in run.samples] == ["iid"]
    assert [row.value for row in run.history if row.stage == "sft"] == [0.75, 0.5]


def test_figures_go_by_their_place_and_the_last_policys_also_without_it(tmp_path: Path) -> None:
    figures = read_run(write_run(tmp_path / "1", objective=0.5), "1").figures
    assert figures["objective"] == figures["iid.gold_reward"] == figures["ppo.iid.gold_reward"] == 0.5
    assert figures["sft.iid.gold_reward"] == -0.5
    assert figures["ppo.score"] == 1.0
    assert figures["seconds"] == 125.0


def test_the_last_policy_is_the_configs_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    path = write_run(tmp_path / "1", objective=0.5)
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["evaluate"] = dict(reversed(metrics["evaluate"].items()))
    write_json(path / "metrics.json", metrics)
    assert read_run(path, "1").figures["iid.gold_reward"] == 0.5


def test_null_and_figures_that_are_not_finite_are_none(tmp_path: Path) -> None:
    path = write_run(tmp_path / "1")
    (path / "metrics.json").write_text('{"objective": NaN, "stages": {"ppo": {"kl": null, "a": Infinity, "ok": 1}}}')
    assert read_run(path, "1").figures == {"ppo.ok": 1.0, "seconds": 125.0}


def test_stages_from_the_cache_are_known(tmp_path: Path) -> None:
    path = write_run(tmp_path / "1")
    write_json(path / "metrics.json", {"objective": 1, "stages": {"sft": {"cache": {"run": "a"}}, "ppo": {}}})
    assert read_run(path, "1").reused == {"sft": {"run": "a"}}


@pytest.mark.parametrize("state", ["pending", "running", "failed", "interrupted"])
def test_a_run_that_did_not_finish_has_no_figures_that_count(tmp_path: Path, state: str) -> None:
    path = write_run(tmp_path / "1", state=state, error="broken" if state == "failed" else None)
    write_json(path / "metrics.json", {"objective": 0.9, "stages": {}, "evaluate": {}})
    run = read_run(path, "1")
    assert (run.state, run.finished) == (state, False)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.yaml", b"a: [1", "config.yaml cannot be read: while parsing a flow sequence"),
        ("config.yaml", b"- a list", "config.yaml holds no mapping"),
        ("status.json", b"{", "status.json cannot be read: Expecting property name"),
        ("status.json", b"[]", "status.json holds no mapping"),
        ("metrics.json", b'{"objective": ', "metrics.json cannot be read: Expecting value"),
        ("metrics.json", b'{"objective": "high", "stages": [], "evaluate": 3}', ""),
        ("metrics.json", b'{"evaluate": {"ppo": 3}}', ""),
        ("provenance.json", b"\xff\xfe", "provenance.json cannot be read: 'utf-8' codec"),
        ("overrides.txt", b"\xff", "overrides.txt cannot be read: 'utf-8' codec"),
        ("samples.jsonl", b'{"split": "iid"}\n', "The samples cannot be read"),
        ("samples.jsonl", b"{\n", "The samples cannot be read"),
        ("history.csv", b"step,value\n1,2\n", "The history file cannot be read"),
        ("history.csv", b"", ""),
    ],
)
def test_a_damaged_file_costs_what_it_holds_and_no_more(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    whole = read_run(write_run(tmp_path / "whole"), "whole")
    path = write_run(tmp_path / "1")
    (path / file).write_bytes(content)
    run = read_run(path, "1")
    problems = (*run.read_problems, *run.late_problems)
    assert len(problems) == bool(told)
    assert all(problem.startswith(told) for problem in problems)
    assert (run.config == whole.config) == (file != "config.yaml")
    assert (run.samples == whole.samples) == (file != "samples.jsonl")
    assert (run.history == whole.history) == (file != "history.csv")
    assert (run.figures == whole.figures) == (file not in ("metrics.json", "status.json"))


@pytest.mark.parametrize(
    "file", ["config.yaml", "status.json", "metrics.json", "provenance.json", "overrides.txt", "samples.jsonl"]
)
def test_a_missing_file_is_no_problem_of_reading(tmp_path: Path, file: str) -> None:
    path = write_run(tmp_path / "1")
    (path / file).unlink()
    run = read_run(path, "1")
    assert run.read_problems == run.late_problems == ()
    assert run.finished == (file not in ("status.json", "metrics.json"))


def test_names_are_as_short_as_tells_runs_apart() -> None:
    sweep = [Path("/a/sweep/0"), Path("/a/sweep/1")]
    assert short_names(sweep) == ["0", "1"]
    assert short_names([*sweep, Path("/a/other/0")]) == ["sweep/0", "sweep/1", "other/0"]
    assert short_names([Path("/a/run")]) == ["run"]
