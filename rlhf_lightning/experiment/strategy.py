"""Lightning's strategy and environment for the processes of a run."""

from __future__ import annotations

import torch
from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from rlhf_lightning.distributed import join
from rlhf_lightning.ranks import Place, this_place
from rlhf_lightning.stages.run_settings import TrainerSettings


class Launched(ClusterEnvironment):
    """Cluster environment for Lightning in which all processes have been started already.

    So Lightning uses neither its own launcher, which replays the command line, nor its SLURM signal handler, which
    would save in the middle of an iteration.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world_size

    def set_world_size(self, size: int) -> None:
        del size

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        del rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


def join_processes(trainer: TrainerSettings) -> None:
    """Initialises the process group of a run, unless it is initialised already or the run needs none."""
    if trainer.strategy != "single":
        on_gpu = trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and torch.cuda.is_available())
        join(this_place(), on_gpu=on_gpu)


def lightning_strategy(trainer: TrainerSettings) -> Strategy | str:
    """Lightning's strategy of that name; the process group is initialised already (`join_processes`)."""
    if trainer.strategy == "ddp":
        return DDPStrategy(forward_sync_buffers=False)
    if trainer.strategy == "fsdp":
        # A full checkpoint in one file, which can be read without the processes that wrote it.
        return ModelParallelStrategy(
            data_parallel_size=trainer.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"
