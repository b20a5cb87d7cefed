"""Who a process is, and what processes tell each other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from runs import ended, started
from torch import Tensor

from rlhf_lightning import distributed
from rlhf_lightning.ranks import SINGLE_PROCESS, RankInfo, first_host, rank_info
from rlhf_lightning.runs.launch import free_port

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nobody_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def placed(monkeypatch: pytest.MonkeyPatch, **variables: object) -> RankInfo:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return rank_info()


def test_a_process_that_nobody_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_info() == SINGLE_PROCESS
    # What a batch script of SLURM sees outside srun: tasks that it could start, none that were.
    assert placed(monkeypatch, SLURM_JOB_ID=7, SLURM_NTASKS=4, SLURM_PROCID=0) == SINGLE_PROCESS


def test_torchrun_says_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    place = placed(
        monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, GROUP_RANK=2, MASTER_ADDR="10.0.0.1", MASTER_PORT=29500
    )
    assert place == RankInfo(rank=5, world_size=8, local_rank=1, node=2, address="10.0.0.1", port=29500)


def test_srun_says_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    place = placed(
        monkeypatch,
        SLURM_STEP_NUM_TASKS=8,
        SLURM_PROCID=5,
        SLURM_LOCALID=1,
        SLURM_NODEID=1,
        SLURM_STEP_NODELIST="gpu[07-08]",
        SLURM_JOB_ID=1234567,
    )
    assert place == RankInfo(rank=5, world_size=8, local_rank=1, node=1, address="gpu07", port=15000 + 4567)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[7]", "gpu7"),
        ("a-b[3,5]-c", "a-b3-c"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_process_alone_exchanges_nothing() -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_reduce_means({"loss": torch.tensor(3.0)}, 7) == ({"loss": torch.tensor(3.0)}, 7)
    assert distributed.all_gather_object("mine") == ["mine"]
    assert distributed.broadcast_object("mine") == "mine"
    distributed.barrier()
    distributed.leave()


def exchange(rank: int, port: int, directory: str) -> None:
    distributed.join(RankInfo(rank, 2, rank, 0, "127.0.0.1", port), on_gpu=False)
    mean, weight = torch.tensor([1.0, 4.0][rank]), [3, 2][rank]
    figures, pooled = distributed.all_reduce_means({"loss": mean}, weight)
    found = {
        "rank": distributed.rank(),
        "total": distributed.all_reduce_sum(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist(),
        "mean": float(figures["loss"]),
        "pooled": pooled,
        "gathered": distributed.all_gather_object(torch.full((1,), float(rank))),
        "first": distributed.broadcast_object("of the first" if rank == 0 else None),
    }
    distributed.leave()
    torch.save(found, Path(directory) / f"{rank}.pt")
    sys.exit(0)


def test_two_processes_tell_each_other(tmp_path: Path) -> None:
    port = free_port()
    ranks = [started(cwd=tmp_path, body=(exchange, (rank, port, str(tmp_path)))) for rank in (0, 1)]
    for code, said in map(ended, ranks):
        assert code == 0, said
    told: list[dict[str, object]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, found in enumerate(told):
        assert found["rank"] == rank
        assert found["total"] == [3.0, 30.0]
        # (1 * 3 + 4 * 2) / 5
        assert (found["mean"], found["pooled"]) == (pytest.approx(2.2), 5)
        parts = found["gathered"]
        assert isinstance(parts, list)
        assert [float(part) for part in parts if isinstance(part, Tensor)] == [0.0, 1.0]
        assert found["first"] == "of the first"
