#!/usr/bin/env bash
# Set-up and main job: installs what a user needs into .venv (nothing for developers), then SFT -> comparisons ->
# reward model -> PPO -> evaluation on the embedded synthetic world. Arguments are overrides of the job:
#   bash scripts/quickstart.sh kl.coef=0.2 seed=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
setup_environment
exec rlhf train "$@"
