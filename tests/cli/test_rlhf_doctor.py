"""`rlhf doctor`: which runs it finds, what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning.cli.main import main

CONFIG = {
    "pipeline": {"stages": ["ppo"]},
    "ppo": {"learning_rate": 1e-8, "value_coef": 0.1},
    "kl": {"kind": "fixed", "coef": 0.04},
    "rollout": {"batch_size": 64, "max_new_tokens": 32, "temperature": 1.0},
}

MOVING = {"policy/approx_kl": 0.001, "objective/kl": 2.0, "objective/score": 0.5}
STILL = {"policy/approx_kl": 1e-12, "objective/kl": 0.0, "objective/score": 0.1}


def write_run(path: Path, figures: dict[str, float], iterations: int = 20, **status: Any) -> Path:
    """A run directory whose figures are the same in each iteration."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    known = {"state": "finished", "stage": None, "started": "", "updated": "", "pid": os.getpid(), "error": None}
    (path / "status.json").write_text(json.dumps({**known, "artifacts": {}, **status}))
    rows = [
        f"ppo,{8 * step},{64 * step},{name},{value}\n"
        for step in range(1, iterations + 1)
        for name, value in figures.items()
    ]
    (path / "history.csv").write_text("stage,step,episodes,name,value\n" + "".join(rows))
    return path


def test_a_healthy_run_exits_with_0_and_shows_what_was_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", MOVING)
    assert main(["doctor", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: healthy (finished, 20 PPO iterations)"
    assert lines[1] == "Nothing stands out."
    assert any(line.split() == ["objective/kl", "2", "2", "2", "2"] for line in lines)


def test_a_serious_finding_exits_with_3_and_proposes_an_override(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(write_run(tmp_path / "run", STILL))]) == 3
    text = capsys.readouterr().out
    assert "SERIOUS  the learning rate is too low: the policy does not move  [learning_rate_too_low]" in text
    assert "  - policy/approx_kl at most 1e-12 nats a token\n" in text
    assert "  try: ppo.learning_rate=1e-05\n" in text


def test_several_runs_and_those_of_a_sweep_are_examined_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = write_run(tmp_path / "alone", MOVING)
    for job in ("1", "0"):
        write_run(tmp_path / "sweep" / job, STILL)
    assert main(["doctor", "--json", str(alone), str(tmp_path / "sweep")]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [(Path(one["run"]).name, one["verdict"]) for one in found] == [
        ("alone", "healthy"),
        ("0", "unhealthy"),
        ("1", "unhealthy"),
    ]
    (finding,) = found[1]["findings"]
    assert finding["name"] == "learning_rate_too_low"
    assert finding["severity"] == "serious"
    assert finding["role"] == "cause"
    assert finding["overrides"] == ["ppo.learning_rate=1e-05"]
    assert found[1]["figures"]["objective/kl"]["end"] == 0.0


def test_json_has_no_numbers_that_json_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {**MOVING, "value/mean": float("nan"), "objective/entropy": float("inf")})
    assert main(["doctor", "--json", str(run)]) == 3

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (found,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["findings"][0]["name"] == "not_finite"


def test_a_run_is_read_while_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", MOVING, iterations=2, state="running", stage="ppo")
    with (run / "history.csv").open("a") as history:
        history.write("ppo,24,192,objective/k")
    assert main(["doctor", str(run)]) == 0
    assert "too early to tell (running, 2 PPO iterations)" in capsys.readouterr().out


def test_a_run_that_was_killed_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    run = write_run(tmp_path / "run", MOVING, state="running", stage="ppo", pid=gone.pid)
    assert main(["doctor", str(run)]) == 0
    assert "its process is gone" in capsys.readouterr().out


def test_a_failed_run_shows_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"what": "A rule broke.", "where": "here", "fix": "do this", "traceback_file": None}
    run = write_run(tmp_path / "run", {}, state="failed", stage="ppo", error=error)
    assert main(["doctor", str(run)]) == 3
    assert "  - A rule broke.\n  - here\n  - do this\n" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["nothing", "empty"])
def test_no_run_there_exits_with_2(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["doctor", str(tmp_path / place)]) == 2
    message = capsys.readouterr().err
    assert "There is no run here." in message
    assert "outputs/latest" in message


def test_a_malformed_history_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", MOVING)
    (run / "history.csv").write_text("stage,step,episodes,name,value\nppo,one,,objective/kl,2\n")
    assert main(["doctor", str(run)]) == 1
    assert "history.csv, line 2" in capsys.readouterr().err
