"""The text of `rlhf train --help`."""

from __future__ import annotations

import textwrap

from rlhf_lightning.experiment.config.compose import ConfigTree

WIDTH = 118

INTRODUCTION = """\
rlhf train: supervised fine-tuning, reward model, PPO and evaluation, or Constitutional AI, in one command

usage: rlhf train [GROUP=OPTION ...] [KEY=VALUE ...] [flags]
"""

REST = """
Every key of every option can be set by its dotted name (ppo.clip_range=0.1). Values are checked before anything is
loaded. rlhf train --cfg job shows them all; the files in conf/ say what each one does.

flags:
  -m, --multirun            a sweep: every combination of comma-separated values, range(1,9,2), choice(a,b)
  -c, --cfg job|hydra|all   print the config and stop; with -p KEY only that part, with --resolve without ${...}
  -i, --info [WHAT]         how the config was put together: defaults, defaults-tree, searchpath, plugins, config
  -cd, --config-dir DIR     a folder of your own options (DIR/experiment/mine.yaml), looked through first
  -h, --help

examples:
  rlhf train                                            the whole pipeline in the embedded world
  rlhf train debug=tiny                                 everything runs, nothing is learned: seconds
  rlhf train kl=none seed=2                             without a KL penalty: watch the reward being hacked
  rlhf train pipeline=constitutional constitution=hhh   Constitutional AI: feedback from a model, by principles
  rlhf train -m sweep=constitution                      nine constitutions, three seeds: what does each do to a policy?
  rlhf train -m kl.coef=0.02,0.2 seed=1,2               four runs, one table
  rlhf train experiment=hh_rlhf_scratch data.path=harmless-base.jsonl.gz
  rlhf train model=hub model.name_or_path=DIR data=files data.preferences=pairs.jsonl trainer=gpu
  rlhf train pipeline=ppo ppo.policy_from=outputs/latest/sft ppo.reward_from=outputs/latest/reward_model
  rlhf train resume=outputs/latest                      go on with an interrupted run

A run leaves everything in outputs/runs/DATE/TIME (outputs/latest points to the newest): config.yaml, status.json,
metrics.json, history.csv, samples.jsonl, plots/, and a directory per stage that Transformers opens.
"""


def help_text(tree: ConfigTree) -> str:
    """Help text of `rlhf train`, with all current config groups, including the user's own."""
    return f"{INTRODUCTION}\ngroups (the default is marked *):\n{_groups(tree)}\n{REST}"


def _groups(tree: ConfigTree) -> str:
    defaults = tree.choices()
    shown = [group for group in tree.groups() if "@" not in group and tree.options(group)]
    width = max(len(group) for group in shown)
    lines = []
    for group in shown:
        options = [f"{name}*" if name == defaults[group] else name for name in tree.options(group)]
        indent = " " * (width + 4)
        line = textwrap.fill("  ".join(options), WIDTH, initial_indent=indent, subsequent_indent=indent)
        lines.append(f"  {group:<{width}}  {line.strip()}")
    return "\n".join(lines)
