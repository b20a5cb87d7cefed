"""`rlhf compare`: what it prints, where it writes, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning.cli.main import main

JOBS = 18
METRICS = ("gold_reward", "proxy_reward", "kl", "harmful_rate", "rude_rate", "over_refusal_rate", "malformed_rate")


def write_job(path: Path, settings: dict[str, Any], objective: float | None) -> Path:
    """A job with figures, or one that failed."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"pipeline": {"stages": ["ppo", "evaluate"]}, **settings}))
    failed = objective is None
    status = {"state": "failed" if failed else "finished", "stage": "ppo" if failed else None}
    times = {"started": "2026-11-22T10:00:00+00:00", "updated": "2026-11-22T10:01:00+00:00"}
    error = {"what": "The loss is not finite."} if failed else None
    (path / "status.json").write_text(json.dumps({**status, **times, "error": error}))
    if objective is not None:
        splits = {split: dict.fromkeys(METRICS, objective) for split in ("validation", "iid", "ood")}
        metrics = {"objective": objective, "stages": {"ppo": {"seconds": 1.0}}, "evaluate": {"ppo": splits}}
        (path / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        f"ppo,{step},{8 * step},objective/{name},{step}\n" for step in range(30) for name in ("kl", "score", "gold")
    ]
    (path / "history.csv").write_text("stage,step,episodes,name,value\n" + "".join(rows))
    return path


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """kl.coef by peft by three seeds; job 7 failed."""
    home = tmp_path / "outputs" / "multirun" / "2026-11-22" / "10-00-00-000000"
    for job in range(JOBS):
        coef, peft, seed = (0.02, 0.1, 0.5)[job // 6], ("none", "lora")[job // 3 % 2], 1 + job % 3
        settings = {"seed": seed, "kl": {"kind": "fixed", "coef": coef}, "peft": {"kind": peft}}
        write_job(home / str(job), settings, None if job == 7 else coef + 0.01 * seed * (1 + job // 3 % 2))
    return home


def test_a_sweep_is_printed_best_first_and_written_beside_itself(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "18 runs in 6 groups, 17 finished"
    rows = [line.split() for line in lines if line.split()[:2] in (["0.5", "lora"], ["0.5", "none"], ["0.1", "none"])]
    # Means 0.54 and 0.52; s = 0.02 and 0.01, times 4.303 / sqrt(3). Job 7 is one of the three of 0.1, none.
    assert rows[0][:6] == ["0.5", "lora", "3", "3", "+0.54", "±0.05"]
    assert rows[1][:6] == ["0.5", "none", "3", "3", "+0.52", "±0.02"]
    assert rows[2][:6] == ["0.1", "none", "2", "of", "3", "2"]
    assert "Less kl.coef=0.5 peft=lora" in lines
    assert "7: failed in stage ppo: The loss is not finite." in lines
    written = ", ".join(
        str(sweep / "compare" / name) for name in ("compare.csv", "runs.csv", "compare.md", "report.html")
    )
    assert lines[-1] == f"written: {written}"
    assert (sweep / "compare" / "report.html").exists()


def test_a_second_comparison_counts_the_same_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(sweep)]) == 0
    first = capsys.readouterr().out
    assert main(["compare", str(sweep)]) == 0
    assert capsys.readouterr().out == first


def test_several_directories_are_written_to_where_one_stands(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(sweep / "0"), str(sweep / "3"), str(sweep / "0")]) == 0
    text = capsys.readouterr().out
    assert "2 runs in 2 groups" in text
    assert f"{sweep / '0'}: was given more than once, and counts once" in text
    assert (tmp_path / "comparison" / "compare.md").exists()
    assert not (sweep / "0" / "compare").exists()


def test_every_option_reaches_the_comparison(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--by", "peft", "--metrics", "ood.kl,objective", "--sort", "ood.kl", "--baseline", "peft=lora"]
    assert main(["compare", str(sweep), *options, "--out", str(tmp_path / "mine")]) == 0
    text = capsys.readouterr().out
    assert "Less peft=lora" in text
    assert "Sorted by ood.kl, lowest first." in text
    assert "Averaged within each seed over kl.coef." in text
    assert "harmful" not in text
    assert (tmp_path / "mine" / "compare.csv").exists()


def test_on_a_narrow_terminal_the_figures_stand_below_each_other(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_lightning.cli.console.PIPED_WIDTH", 60)
    assert main(["compare", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if "±" in line and "Mean ±" not in line]
    assert max(map(len, table)) <= 60
    assert sum(line.split()[:2] == ["0.5", "lora"] for line in table) > 2


def test_many_settings_stand_in_one_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_lightning.cli.console.PIPED_WIDTH", 100)
    for job in range(2):
        settings = {"ppo": {f"a_setting_{number}": 10 * number + job for number in range(30)}}
        write_job(tmp_path / str(job), {"seed": 1, **settings}, 0.5)
    assert main(["compare", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["settings", "n"] for line in lines)
    assert any("..." in line for line in lines)
    assert max(len(line) for line in lines if "..." in line) <= 100


def test_no_run_no_key_no_metric_no_group_exit_with_2(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep.parent / "empty").mkdir()
    assert main(["compare", str(sweep.parent / "empty")]) == 2
    assert "There is no run here." in capsys.readouterr().err
    for option, word, meant in (
        ("--by", "kl.koef", "did you mean kl.coef"),
        ("--metrics", "objektive", "did you mean objective"),
        ("--sort", "iid.gold_rewards", "did you mean iid.gold_reward"),
        ("--baseline", "peft=lore", "name one: kl.coef=0.5,peft=lora"),
    ):
        assert main(["compare", str(sweep), option, word]) == 2
        assert meant in capsys.readouterr().err
    assert not (sweep / "compare").exists()


def test_a_damaged_history_is_named_and_the_rest_compared(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "3" / "history.csv").write_text("one,two\n1,2\n")
    assert main(["compare", str(sweep)]) == 0
    text = capsys.readouterr().out
    assert "3: The history file cannot be read: the header is 'one,two'" in text
    assert "17 finished" in text


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--help"])
    assert caught.value.code == 0
    assert "rlhf compare outputs/latest --baseline kl.coef=0.1,peft=none" in capsys.readouterr().out
