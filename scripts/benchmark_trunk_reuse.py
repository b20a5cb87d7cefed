"""How long an update of PPO takes where frozen blocks are computed once a rollout, and where in every update.

    python scripts/benchmark_trunk_reuse.py                          # a minute or two on a CPU
    python scripts/benchmark_trunk_reuse.py --depth 24 --hidden 1024 --layers 2 6 --trainer gpu

All are runs of `rlhf train pipeline=ppo` on the same random Llama, prompts and draws. They are made `--rounds` times in
turn, and the shortest update of each counts: on a busy machine the others say more about the neighbors.

A block costs a forward pass, and two more in the backward pass if it is trained. Of L blocks, k of them trained, an
update so costs 3k instead of 3L, or instead of L + 2k where the frozen ones are computed anew; what is no block (the LM
head, the losses) costs the same in all.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rlhf_lightning.cli.main import main as rlhf

WORDS = 500
PROMPT, RESPONSE = 24, 24
"""Tokens."""
ROLLOUTS = 16
FULL = "peft=none"


@dataclass(frozen=True)
class Row:
    """One way to train, measured.

    Attributes:
        seconds: of an iteration's updates, by the way the frozen blocks are computed.
        losses: of the policy, by iteration.
    """

    seconds: float
    losses: list[float]


def main() -> None:
    arguments = parse()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        make_artifacts(directory, arguments.depth, arguments.hidden)
        ways = [(FULL,), *(way(layers, reuse) for layers in arguments.layers for reuse in (False, True))]
        rows: dict[tuple[str, ...], Row] = {}
        for number in range(arguments.rounds):
            for one in ways:
                measured = run(directory, f"{number}-{ways.index(one)}", *one, f"trainer={arguments.trainer}")
                before = rows.get(one)
                rows[one] = measured if before is None or measured.seconds < before.seconds else before
    Console().print(table(rows, arguments.layers, arguments.depth))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=8, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=256, help="its width")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4], help="how many blocks are trained")
    parser.add_argument("--rounds", type=int, default=2, help="how often each run is made")
    parser.add_argument("--trainer", default="cpu", help="the config group trainer")
    return parser.parse_args()


def way(layers: int, reuse: bool) -> tuple[str, ...]:
    """The overrides of a row."""
    return "peft=top_layers", f"peft.layers={layers}", f"peft.reuse_trunk={str(reuse).lower()}"


def make_artifacts(directory: Path, depth: int, hidden: int) -> None:
    """A policy and a reward model with random weights, and prompts."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(3, WORDS))]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    sizes: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=depth)).save_pretrained(directory / "policy")
    reward = LlamaConfig(**sizes, num_hidden_layers=1, id2label={0: "reward"})
    LlamaForSequenceClassification(reward).save_pretrained(directory / "reward")
    for model in ("policy", "reward"):
        tokenizer.save_pretrained(directory / model)
    chance = random.Random(0)
    prompts = (" ".join(chance.choices(words[3:], k=PROMPT)) for _ in range(256))
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(directory: Path, name: str, *overrides: str) -> Row:
    """Three iterations; the first one's update warms up."""
    run_dir = directory / "runs" / name
    code = rlhf(
        [
            "train",
            *("pipeline=ppo", "data=files", "logger=none", "callbacks.progress_bar=false"),
            *("model=hub", f"model.name_or_path={directory / 'policy'}", f"ppo.policy_from={directory / 'policy'}"),
            *(f"ppo.reward_from={directory / 'reward'}", "reward.standardize_on_reference=null"),
            *(f"data.prompts={directory / 'prompts.jsonl'}", f"data.max_prompt_length={PROMPT}"),
            *(f"rollout.max_new_tokens={RESPONSE}", f"rollout.batch_size={ROLLOUTS}", f"rollout.chunk_size={ROLLOUTS}"),
            *("ppo.iterations=3", "ppo.epochs=2", "ppo.minibatches=2", f"ppo.micro_batch_size={ROLLOUTS // 2}"),
            *(f"paths.outputs={directory / 'outputs'}", f"paths.run_dir={run_dir}"),
            *overrides,
        ]
    )
    if code:
        sys.exit(f"the run with {' '.join(overrides)} failed")
    figures: dict[str, list[float]] = {}
    with (run_dir / "history.csv").open(newline="", encoding="utf-8") as file:
        for entry in csv.DictReader(file):
            figures.setdefault(entry["name"], []).append(float(entry["value"]))
    return Row(min(figures["time/update"][1:]), figures["policy/loss"])


def table(rows: dict[tuple[str, ...], Row], counts: list[int], depth: int) -> Table:
    """Seconds and their ratios, beside what the blocks alone would give."""
    full = rows[FULL,].seconds
    made = Table(
        title=f"An iteration's updates of a model of L={depth} blocks, k of them trained",
        caption=f"all: {FULL}, {full:.2f} s; anew: peft.reuse_trunk=false; reused: true; gap: the largest difference "
        "of a loss between the two",
    )
    for column in ("k", "anew", "reused", "reused/all", "k/L", "reused/anew", "3k/(L+2k)", "gap"):
        made.add_column(column, justify="right")
    for layers in counts:
        anew, reused = rows[way(layers, False)], rows[way(layers, True)]
        gap = max(abs(one - other) for one, other in zip(anew.losses, reused.losses, strict=True))
        made.add_row(
            str(layers),
            f"{anew.seconds:.2f} s",
            f"{reused.seconds:.2f} s",
            f"{reused.seconds / full:.3f}",
            f"{layers / depth:.3f}",
            f"{reused.seconds / anew.seconds:.3f}",
            f"{3 * layers / (depth + 2 * layers):.3f}",
            f"{gap:.1e}",
        )
    return made


if __name__ == "__main__":
    main()
