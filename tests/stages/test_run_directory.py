"""The run directory: one run each, whole files, and a `latest` that never costs anybody anything."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.stages import run_directory
from rlhf_lightning.stages.run_directory import RunDirectory, RunError, point_latest

SETTINGS = {"seed": 1, "kl": {"kind": "fixed", "coef": 1e-05}, "name": None, "notes": "ä: b"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", SETTINGS, ["seed=1", "kl.coef=1e-05"])


def test_a_new_run_can_be_opened_again(run: RunDirectory) -> None:
    again = RunDirectory.open(run.path)
    assert again.config == SETTINGS
    assert again.overrides == ["seed=1", "kl.coef=1e-05"]
    assert again.status == run.status
    assert (again.status.state, again.status.stage, again.status.error) == ("running", None, None)
    assert again.status.pid == os.getpid()
    assert again.metrics is None


def test_status_changes_leave_the_rest_alone(run: RunDirectory) -> None:
    started = run.status.started
    run.update_status(stage="ppo")
    run.add_artifact("sft", run.path / "sft")
    run.add_artifact("reward_model", Path("/elsewhere/rm"))
    run.update_status(state="failed", error=RunError("broken", fix="mend it"))
    status = run.status
    assert (status.state, status.stage, status.started) == ("failed", "ppo", started)
    assert status.error == RunError("broken", None, "mend it", None)
    assert status.artifacts == {"sft": "sft", "reward_model": "/elsewhere/rm"}


def test_a_directory_is_one_runs(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        RunDirectory.create(run.path, {"seed": 2}, [])
    assert run.config["seed"] == 1


def test_other_files_in_a_directory_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    assert RunDirectory.create(tmp_path, SETTINGS, []).status.state == "running"


def test_of_many_runs_at_once_exactly_one_gets_the_directory(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def claim(number: int) -> int:
        barrier.wait()
        try:
            RunDirectory.create(tmp_path / "run", {"seed": number}, [])
        except RunDirectoryError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1


def test_no_run_can_be_opened_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run here"):
        RunDirectory.open(tmp_path)


def test_folders_are_made_on_demand(run: RunDirectory) -> None:
    assert run.stage_dir("sft") == run.path / "sft"
    assert run.checkpoint_dir("ppo") == run.path / "checkpoints" / "ppo"
    assert not run.checkpoint_dir("ppo").exists()


def test_only_one_process_runs_in_a_directory(run: RunDirectory) -> None:
    """The claim of a process that was killed ends with it."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rlhf_lightning.stages.run_directory import RunDirectory\n"
        "run = RunDirectory.open(Path(sys.argv[1]))\n"
        "with run.held():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        run.update_status(pid=other.pid)
        with pytest.raises(RunDirectoryError, match="going on") as caught, run.held():
            pass
        assert f"kill {other.pid}" in str(caught.value.fix)
    finally:
        other.kill()
        other.wait()
    with run.held(), run.held():  # in one process: as deep as one likes
        pass


def test_metrics_are_json_that_every_reader_takes(run: RunDirectory) -> None:
    run.write_metrics({"objective": float("nan"), "kl": [1.5, float("inf")], "name": "ü"})
    text = (run.path / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"objective": None, "kl": [1.5, None], "name": "ü"}
    assert run.metrics == {"objective": None, "kl": [1.5, None], "name": "ü"}


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_metrics({"objective": 1})
    before = sorted(run.path.iterdir())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_directory.os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        run.write_metrics({"objective": 2})
    assert run.metrics == {"objective": 1}
    assert sorted(run.path.iterdir()) == before


def test_a_reader_never_sees_a_part(run: RunDirectory) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len((run.metrics or {}).get("values", [])))

    run.write_metrics({"values": []})
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        run.write_metrics({"values": list(range(2000))})
        run.write_metrics({"values": []})
    stop.set()
    reader.join()
    assert set(seen) <= {0, 2000}


def test_written_files_have_ordinary_permissions(run: RunDirectory) -> None:
    mask = os.umask(0o022)
    try:
        run.write_metrics({})
    finally:
        os.umask(mask)
    assert (run.path / "metrics.json").stat().st_mode & 0o777 == 0o644


def test_latest_follows_the_newest_run(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for name in ("a", "b"):
        target = outputs / "runs" / name
        target.mkdir(parents=True)
        point_latest(outputs, target)
        assert (outputs / "latest").resolve() == target
    assert os.readlink(outputs / "latest") == "runs/b"
    assert sorted(path.name for path in outputs.iterdir()) == ["latest", "runs"]


def test_latest_replaces_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    point_latest(tmp_path, tmp_path / "run")
    assert os.readlink(tmp_path / "latest") == "run"


def test_a_directory_called_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "precious").touch()
    point_latest(tmp_path, tmp_path / "run")
    assert (tmp_path / "latest" / "precious").exists()
    assert (tmp_path / "latest.txt").read_text() == f"{tmp_path / 'run'}\n"


def test_without_links_the_path_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    point_latest(tmp_path, tmp_path / "run")
    assert (tmp_path / "latest.txt").read_text() == f"{tmp_path / 'run'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.txt"]
