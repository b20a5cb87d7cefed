#!/usr/bin/env bash
# A run on several nodes under SLURM. Copy it, edit the lines with <-, then: sbatch scripts/slurm.sh
#
#SBATCH --job-name=rlhf
#SBATCH --nodes=2                 # <- machines
#SBATCH --ntasks-per-node=8       # <- one process a GPU
#SBATCH --gpus-per-node=8         # <- as many as that
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00           # <- a run that needs longer goes on in the next job by itself
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append        # a job that is put back into the queue keeps its log
#SBATCH --requeue
#SBATCH --signal=SIGUSR1@90       # 90 s before the end: the run stops, and the job goes back into the queue
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"            # <- the repository, on a filesystem that all nodes see
. .venv/bin/activate

# The processes meet on the first node.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# The directory is named after the job, and resume=auto goes on with the run that is in it: so a job that was put back
# into the queue continues. Arguments of this script are further overrides.
srun --kill-on-bad-exit=1 rlhf train trainer=ddp \
    trainer.accelerator=gpu trainer.precision=bf16-mixed \
    trainer.nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
    paths.run_dir="outputs/slurm-$SLURM_JOB_ID" resume=auto "$@"
