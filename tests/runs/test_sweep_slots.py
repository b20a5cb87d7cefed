"""Slots: so many jobs at once, each with its share of the cores and GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs.sweep_jobs import leased, share_of
from rlhf_lightning.runs.sweep_record import Plan


def plan(jobs: int = 2, gpus: tuple[str, ...] = (), cores: int | None = None) -> Plan:
    return Plan(
        overrides=[],
        config_dir=None,
        on_failure="continue",
        launcher={"kind": "joblib", "jobs": jobs},
        hydra_launcher={},
        draws=False,
        sampled_before=0,
        jobs={},
        batch=None,
        gpus=gpus,
        cores=cores,
        started="2026-11-23T00:00:00+00:00",
        pid=1,
    )


def trainer(**changes: Any) -> dict[str, Any]:
    return {"accelerator": "gpu", "devices": 1, "threads": None, **changes}


@pytest.mark.parametrize(
    ("devices", "shares"),
    [
        (1, ["0", "1", "2", "0"]),  # four jobs at once on three GPUs: the fourth shares the first one's
        (2, ["0,1", "2,0", "1,2", "0,1"]),
    ],
)
def test_jobs_get_the_gpus_in_turn(devices: int, shares: list[str]) -> None:
    three = plan(jobs=4, gpus=("0", "1", "2"))
    given = [share_of(slot, three, trainer(devices=devices))["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert given == shares


def test_gpus_keep_the_names_they_have_outside() -> None:
    assert share_of(1, plan(gpus=("5", "GPU-a1")), trainer()) == {"CUDA_VISIBLE_DEVICES": "GPU-a1"}


def test_a_job_on_the_cpu_is_left_alone_with_gpus() -> None:
    assert share_of(0, plan(gpus=("0",)), trainer(accelerator="cpu")) == {}


@pytest.mark.parametrize(
    ("cores", "changes", "threads"),
    [
        (16, {}, "8"),  # two jobs at once
        (16, {"devices": 2}, "4"),  # of two processes each
        (1, {}, "1"),
        (16, {"threads": 3}, None),  # the config has said how many
        (None, {}, None),  # the environment has
    ],
)
def test_jobs_at_once_share_the_cores(cores: int | None, changes: dict[str, Any], threads: str | None) -> None:
    assert share_of(0, plan(cores=cores), trainer(**changes)).get("OMP_NUM_THREADS") == threads


def test_a_slot_is_one_jobs_until_it_is_left(tmp_path: Path) -> None:
    def never() -> bool:
        return False

    with leased(tmp_path, 2, never) as first:
        with leased(tmp_path, 2, never) as second:
            assert (first, second) == (0, 1)
            answers = iter([False, False, True])
            with leased(tmp_path, 2, lambda: next(answers)) as third:
                assert third is None
        with leased(tmp_path, 2, never) as again:
            assert again == 1


def test_a_slot_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from rlhf_lightning.runs.sweep_jobs import leased\n"
        f"with leased(Path({str(tmp_path)!r}), 1, lambda: False) as slot:\n"
        "    print(slot, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        answers = iter([False, True])
        with leased(tmp_path, 1, lambda: next(answers)) as slot:
            assert slot is None
        process.kill()
    with leased(tmp_path, 1, lambda: False) as slot:
        assert slot == 0
