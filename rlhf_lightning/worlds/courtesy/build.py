"""Rebuilds the base model of the courtesy world: `python -m rlhf_lightning.worlds.courtesy.build`.

Takes about ten minutes on two CPU cores. The weights are stored in half precision, so that they fit in the package;
the config asks for single precision, in which they are loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Final

import torch
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lightning.worlds.courtesy import asset_path
from rlhf_lightning.worlds.courtesy.base_model import TrainingPlan, train
from rlhf_lightning.worlds.courtesy.measure import Speaker, report
from rlhf_lightning.worlds.courtesy.tokenizer import build_tokenizer

COMMAND: Final = "python -m rlhf_lightning.worlds.courtesy.build"
MEASURED_SPLITS: Final = ("iid", "ood")

logger = logging.getLogger(__name__)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes a directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})


def build(output: Path, plan: TrainingPlan, threads: int) -> None:
    """Trains, measures and writes the base model and its tokenizer."""
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=plan.steps)
        model, tokens = train(
            tokenizer, plan, lambda loss: progress.update(task, advance=1, description=f"training, loss {loss:.3f}")
        )
    seconds = time.monotonic() - started
    save(model, tokenizer, output)
    # What is measured is what was stored, rounding included.
    stored = LlamaForCausalLM.from_pretrained(output).eval()
    record = {
        "command": f"{COMMAND} --seed {plan.seed} --steps {plan.steps}",
        "seed": plan.seed,
        "steps": plan.steps,
        "training_tokens": tokens,
        "seconds": round(seconds),
        "threads": threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "measured": {split: report(Speaker(stored, tokenizer), split, plan.seed) for split in MEASURED_SPLITS},
    }
    (output / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("wrote %s after %d s of training", output, seconds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Rebuild the base model of the courtesy world.")
    parser.add_argument(
        "--output", type=Path, default=asset_path(), help="the directory to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and corpus (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="batches of 64 documents (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    build(arguments.output, TrainingPlan(seed=arguments.seed, steps=arguments.steps), arguments.threads)


if __name__ == "__main__":
    main()
