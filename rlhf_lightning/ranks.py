"""Rank of this process, from the environment that torchrun, srun or `runs.launch` sets.

Imports no torch: it is asked before anything is loaded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LOCALHOST = "127.0.0.1"

FIRST_PORT = 15000
"""Under SLURM the job's id, added to this, names the port on which the processes meet, unless MASTER_PORT does."""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Rank of a process, and address of the group.

    Attributes:
        rank: global rank; rank 0 writes the run directory.
        world_size: number of processes on all nodes.
        local_rank: rank on its node, which is also the index of its GPU.
        node: index of its node.
        address: of the node of rank 0.
        port: on that node, for the rendezvous.
    """

    rank: int
    world_size: int
    local_rank: int
    node: int
    address: str
    port: int


SINGLE_PROCESS = RankInfo(rank=0, world_size=1, local_rank=0, node=0, address=LOCALHOST, port=0)


def rank_info() -> RankInfo:
    """Rank and address of this process; `SINGLE_PROCESS` without a launcher."""
    found = os.environ
    if "RANK" in found and "WORLD_SIZE" in found:  # torchrun, Kubeflow, our own launcher
        return RankInfo(
            rank=int(found["RANK"]),
            world_size=int(found["WORLD_SIZE"]),
            local_rank=int(found.get("LOCAL_RANK", "0")),
            node=int(found.get("GROUP_RANK", found.get("NODE_RANK", "0"))),
            address=found.get("MASTER_ADDR", LOCALHOST),
            port=int(found.get("MASTER_PORT", FIRST_PORT)),
        )
    # Of this step of the job, not of the job: within a batch script, outside srun, there is one process.
    if int(found.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return RankInfo(
            rank=int(found["SLURM_PROCID"]),
            world_size=int(found["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(found["SLURM_LOCALID"]),
            node=int(found["SLURM_NODEID"]),
            address=found.get("MASTER_ADDR") or first_host(found["SLURM_STEP_NODELIST"]),
            port=int(found.get("MASTER_PORT", FIRST_PORT + int(found["SLURM_JOB_ID"]) % 10000)),
        )
    return SINGLE_PROCESS


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `gpu[07-09,12],login1` -> `gpu07`."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]
