"""W&B's history of a stage: over episodes, with summaries and a sample log, and whole when a stage goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from offline_run import OfflineRun, recorded

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.records import Message, Prompt, ScoredResponse
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.tracking.history import HistoryLogger
from rlhf_lightning.tracking.wandb_client import summaries
from rlhf_lightning.tracking.wandb_run import RunCard, WandbLogger, WandbRun, WandbSink

CARD = RunCard("test", None, "group", "ppo", "ppo x", [], None, {"kl": {"coef": 0.1}}, STAGES["ppo"].logged)
SCORES = [0.5, 2.0, 1.0, -1.0]


def answered(iteration: int) -> list[ScoredResponse]:
    return [ScoredResponse(Prompt((Message("user", "how?"),)), f"so {iteration}", 0.5, finished=True)]


def train(run_dir: Path, iterations: range, fails: bool = False) -> None:
    """Logs like a PPO stage: before each update one figure, after it three; responses of every second iteration."""
    history = HistoryLogger(run_dir, "ppo")
    with WandbRun(CARD, run_dir, "offline") as tracked:
        logger, sink = WandbLogger(tracked), WandbSink(tracked, None)
        for iteration in iterations:
            if iteration % 2 == 0:
                sink.log_rollout_samples(iteration, answered(iteration))
            rows: list[dict[str, float]] = [
                {"learning_rate": 0.1},
                {"objective/score": SCORES[iteration], "objective/kl": 0.1, "rollout/episodes": 8 * (iteration + 1)},
            ]
            for row in rows:
                for each in (history, logger):
                    each.log_metrics(row, step=iteration)
        if fails:
            raise KeyboardInterrupt
        sink.log_summary({"score": SCORES[iterations[-1]]})


def episodes(run: OfflineRun) -> list[int]:
    return [row["rollout/episodes"] for row in run.history if "objective/score" in row]


def sample_log(run: OfflineRun) -> list[list[Any]]:
    """The rows of all increments of the sample log that a part of a run logged."""
    paths = [row["sample_log.path"] for row in run.history if "sample_log.path" in row]
    return [row for path in paths for row in json.loads((run.directory / "files" / path).read_text())["data"]]


def test_figures_stand_over_episodes_and_the_summary_keeps_extremes(tmp_path: Path) -> None:
    train(tmp_path, range(4))
    run = recorded(tmp_path, "ppo")
    assert run.axes["*"] == run.axes["objective/score"] == "rollout/episodes"
    assert run.summaries["objective/score"] == {"max", "last"}
    assert run.summaries["policy/loss"] == {"min", "last"}
    assert run.summaries["rollout/length"] == {"min", "max", "last"}
    assert run.summary["objective/score"] == {"max": 2.0, "last": -1.0}
    assert run.summary["score"] == -1.0
    assert episodes(run) == [8, 16, 24, 32]


def test_the_sample_log_grows(tmp_path: Path) -> None:
    train(tmp_path, range(4))
    run = recorded(tmp_path, "ppo")
    assert sample_log(run) == [[0, "how?", "so 0", 0.5, True], [2, "how?", "so 2", 0.5, True]]
    with_sample_log = [row["rollout/episodes"] for row in run.history if "sample_log.path" in row]
    assert with_sample_log == [8, 24], "beside the figures of its own iteration"
    assert run.summary["sample_log.nrows"] == 2
    assert run.summary["sample_log.log_mode"] == "INCREMENTAL"


def test_rows_past_the_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    """A run is killed in its third iteration and goes on from the checkpoint of the first."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, range(3), fails=True)
    first = recorded(tmp_path, "ppo")
    history = tmp_path / "history.csv"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:5]))  # the header, and four figures of the first iteration
    train(tmp_path, range(1, 4))
    second = recorded(tmp_path, "ppo")

    assert first.directory != second.directory
    assert first.run.run_id == second.run.run_id
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert (episodes(first), episodes(second)) == ([8, 16, 24], [32])
    steps = first.steps + second.steps
    assert steps == sorted(set(steps)), "one history, in which nothing goes back"
    assert [row[0] for row in sample_log(first) + sample_log(second)] == [0, 2]
    assert second.summary["objective/score"] == {"max": 2.0, "last": -1.0}, "of both parts"


def test_rows_that_were_lost_with_the_process_are_logged_from_the_history_file(tmp_path: Path) -> None:
    """The file of the first part ends within its third row; the run goes on from the checkpoint of the second."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, range(3), fails=True)
    first = recorded(tmp_path, "ppo")
    (path,) = first.directory.glob("*.wandb")
    whole = path.read_bytes()
    cut = next(end for end in range(len(whole), 0, -100) if _last_step(path, whole[:end]) == 1)
    assert cut < len(whole)
    history = tmp_path / "history.csv"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:9]))  # the header, and four figures of each of two iterations
    train(tmp_path, range(2, 4))
    second = recorded(tmp_path, "ppo")
    assert episodes(second) == [16, 24, 32]
    assert [row["learning_rate"] for row in second.history if "learning_rate" in row] == [0.1, 0.1, 0.1]
    assert [row["trainer/global_step"] for row in second.history if "objective/score" in row] == [1, 2, 3]
    assert second.steps[:2] == [4, 5], "where they stood"


def test_a_run_that_is_logged_only_when_it_goes_on_is_logged_whole(tmp_path: Path) -> None:
    for iteration in range(2):
        HistoryLogger(tmp_path, "ppo").log_metrics(
            {"objective/score": SCORES[iteration], "rollout/episodes": 8 * (iteration + 1)}, step=iteration
        )
    train(tmp_path, range(2, 4))
    assert episodes(recorded(tmp_path, "ppo")) == [8, 16, 24, 32]


def _last_step(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return OfflineRun(path.parent).steps[-1]


def test_a_users_own_rows_do_not_stop_ours(tmp_path: Path) -> None:
    with WandbRun(CARD, tmp_path, "offline") as tracked:
        assert tracked.run is not None
        for number in range(3):
            for _ in range(5):
                tracked.run.log({"mine": 1.0})
            WandbLogger(tracked).log_metrics({"learning_rate": float(number)}, step=number)
    run = recorded(tmp_path, "ppo")
    assert [row["learning_rate"] for row in run.history if "learning_rate" in row] == [0.0, 1.0, 2.0]


def test_summaries_count_only_what_can_be_compared() -> None:
    rows = [
        HistoryRow("ppo", 0, 8, "objective/kl", 3.0),
        HistoryRow("ppo", 1, 16, "objective/kl", float("inf")),
        HistoryRow("ppo", 2, 24, "objective/kl", 1.0),
        HistoryRow("sft", 0, None, "objective/kl", 9.0),
        HistoryRow("ppo", 2, 24, "time/score", 5.0),
        HistoryRow("ppo", 2, 24, "objective/gold", float("nan")),
    ]
    assert summaries(rows, "ppo", STAGES["ppo"].logged) == {"objective/kl": {"max": 3.0, "last": 1.0}}
    assert summaries(rows, "evaluate", STAGES["evaluate"].logged) == {}


def test_online_the_server_knows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[int] = []

    class Resumed:
        id, name, entity, offline, url = "1", "n", "", False, None
        starting_step = step = 4
        dir = str(tmp_path / "files")

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, row: dict[str, float], **_: Any) -> None:
            logged.append(int(row["rollout/episodes"]))

        def finish(self, **_: Any) -> None: ...

    monkeypatch.setattr(wandb, "init", lambda **_: Resumed())
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with WandbRun(CARD, tmp_path, "online") as tracked:
        for episode in (8, 16, 24):
            tracked.log_row({"objective/score": 1.0, "rollout/episodes": episode}, episode)
    assert logged == [24]
