"""PPO's memory, ours and that of TRL 1.12, on the same random models and shapes.

    pip install -e . && python -m venv trl && trl/bin/pip install trl==1.12.0 peft
    python scripts/benchmark_memory.py --trl-python trl/bin/python

Each row is a process of its own; its peak is what the operating system recorded when it ended (on a GPU: what torch
reserved at most). Ours are runs of `rlhf train pipeline=ppo`. Prints a table, and writes it as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
KIB, MB = 1024, 10**6
GOALS = {"TRL, full": 0.45, "TRL, LoRA": 0.60}
"""What the peak of LoRA on a shared backbone may be of that of the other row, at most."""
SHARED = "LoRA, shared backbone"


@dataclass(frozen=True)
class Size:
    """A Llama-style model."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int


SIZES = {
    size.name: size
    for size in (
        Size("tiny", 512, 32, 2, 2, 64),
        Size("25M", 16384, 384, 8, 6, 1536),
        Size("124M", 50257, 768, 12, 12, 2048),
    )
}


@dataclass(frozen=True)
class Shape:
    """What all rows have in common, in the words of both programs: rollouts, tokens, passes, iterations."""

    batch: int = 8
    micro_batch: int = 4
    chunk: int = 4
    prompt: int = 64
    response: int = 64
    epochs: int = 1
    iterations: int = 2
    rank: int = 16
    prompts: int = 64


@dataclass(frozen=True)
class Row:
    """One of our ways to train: the artifacts it starts from, and its overrides."""

    name: str
    artifacts: str
    overrides: tuple[str, ...]


OURS = (
    Row("all weights", "whole", ("peft=none", "ppo.critic=separate")),
    Row("LoRA, separate models", "lora", ("peft=lora", "ppo.critic=separate", "model.share_backbone=false")),
    Row(SHARED, "lora", ("peft=lora", "ppo.critic=separate", "model.share_backbone=true")),
    Row("LoRA, shared backbone, value head", "lora", ("peft=lora", "model.share_backbone=true")),
    Row("top_layers", "top_layers", ("peft=top_layers", "ppo.critic=separate")),
)
"""Four models each, as TRL has; one of them also with this project's default critic, a value head."""


def main() -> int:
    arguments = parse()
    if arguments.make:
        make(Path(arguments.make), SIZES[arguments.sizes], Shape(**json.loads(arguments.shape)))
        return 0
    console = Console(width=150)
    shape = Shape(**json.loads(arguments.shape))
    sizes = [SIZES[name] for name in arguments.sizes.split(",")]
    work, out = Path(arguments.work).resolve(), Path(arguments.out)
    results: dict[str, Any] = {"shape": asdict(shape), "threads": arguments.threads, "sizes": {}}
    for size in sizes:
        world = work / size.name
        if not (world / "prompts.jsonl").exists():
            run([sys.executable, __file__, "--make", str(world), "--sizes", size.name, "--shape", arguments.shape], {})
        rows = measured(world, size, shape, arguments, console)
        results["sizes"][size.name] = {"rows": rows, "ratios": ratios(rows)}
        console.print(as_table(size, rows))
        for name, ratio in ratios(rows).items():
            console.print(f"{SHARED} / {name}: {ratio:.2f} (goal: at most {GOALS[name]:.2f})")
        out.mkdir(parents=True, exist_ok=True)
        (out / "memory.json").write_text(json.dumps(results, indent=2) + "\n")
        (out / "memory.md").write_text(as_markdown(results))
    console.print(f"Written: {out / 'memory.json'}, {out / 'memory.md'}")
    return 0


def parse() -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--sizes", default="25M,124M", help=f"of {', '.join(SIZES)}")
    flags.add_argument("--shape", default="{}", help=f"JSON that replaces some of {json.dumps(asdict(Shape()))}")
    flags.add_argument("--trl-python", default=sys.executable, help="an interpreter with trl==1.12.0")
    flags.add_argument("--no-trl", action="store_true", help="our rows only")
    flags.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    flags.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    flags.add_argument("--work", default="outputs/benchmarks/work", help="where models and runs are put")
    flags.add_argument("--out", default="outputs/benchmarks", help="where the tables go")
    flags.add_argument("--make", help=argparse.SUPPRESS)
    return flags.parse_args()


def measured(
    world: Path, size: Size, shape: Shape, arguments: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """All rows of a size; one that fails is said and left out."""
    rows = []
    for row in OURS:
        rows.append(ours(world, row, shape, arguments))
        console.print(said(rows[-1]))
    if not arguments.no_trl:
        for name, flags in (("TRL, full", []), ("TRL, LoRA", ["--peft"])):
            rows.append(trl(world, name, flags, size, shape, arguments))
            console.print(said(rows[-1]))
    return rows


def ours(world: Path, row: Row, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of `rlhf train`, and what its metrics.json says."""
    directory = world / "runs" / f"{row.name.replace(' ', '_').replace(',', '')}-{os.getpid()}"
    artifacts = world / row.artifacts
    command = [
        *(sys.executable, "-m", "rlhf_lightning", "train", "pipeline=ppo"),
        *("model=hub", f"model.name_or_path={world / 'whole' / 'policy'}"),
        *(f"ppo.policy_from={artifacts / 'policy'}", f"ppo.reward_from={artifacts / 'reward'}"),
        *("data=files", f"data.prompts={world / 'prompts.jsonl'}", "data.held_out_fraction=0.05"),
        *(f"rollout.batch_size={shape.batch}", f"rollout.chunk_size={shape.chunk}"),
        *(f"rollout.max_new_tokens={shape.response}", f"ppo.micro_batch_size={shape.micro_batch}"),
        *("ppo.minibatches=1", f"ppo.epochs={shape.epochs}", f"ppo.iterations={shape.iterations}"),
        *("reward.standardize_on_reference=null", "logger=none", f"trainer.threads={arguments.threads}"),
        *(f"trainer.accelerator={arguments.device}", f"paths.run_dir={directory}"),
        *(one for one in row.overrides),
        *((f"peft.rank={shape.rank}", f"peft.alpha={2 * shape.rank}") if row.artifacts == "lora" else ()),
    ]
    peak, seconds = run(command, threads(arguments))
    memory = json.loads((directory / "metrics.json").read_text())["stages"]["ppo"]["memory"]
    peak = memory["measured_peak_bytes"] if arguments.device == "gpu" else peak
    return {
        "name": f"ours, {row.name}",
        **{key: memory[key] for key in ("weights_bytes", "trainable_parameters", "optimizer_bytes")},
        "peak_bytes": peak,
        "seconds": round(seconds, 1),
    }


def trl(
    world: Path, name: str, flags: Sequence[str], size: Size, shape: Shape, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run of TRL's trainer."""
    figures = world / f"{'-'.join(['trl', *flags])}.json"
    command = [
        *(arguments.trl_python, str(ROOT / "scripts" / "trl_ppo.py"), "--out", str(figures)),
        *("--policy", str(world / "whole" / "policy"), "--reward", str(world / "whole" / "reward")),
        *("--shape", json.dumps({**asdict(shape), "vocabulary": size.vocabulary}), *flags),
    ]
    hidden = {} if arguments.device == "gpu" else {"CUDA_VISIBLE_DEVICES": ""}
    peak, seconds = run(command, {**threads(arguments), **hidden})
    found = json.loads(figures.read_text())
    peak = found.pop("cuda_peak_bytes", peak)
    return {"name": name, **found, "peak_bytes": peak, "seconds": round(seconds, 1)}


def threads(arguments: argparse.Namespace) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, float]:
    """Peak resident bytes of a command, and the seconds that it took. This process is small: a child begins with it."""
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{said[-4000:]}\nfailed with {process.returncode}")
    return usage.ru_maxrss * KIB, time.perf_counter() - started


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The peak of LoRA on a shared backbone, as a share of each of TRL's."""
    peaks = {row["name"]: row["peak_bytes"] for row in rows}
    return {name: peaks[f"ours, {SHARED}"] / peaks[name] for name in GOALS if name in peaks}


COLUMNS = ("", "weights", "trainable", "optimizer", "peak", "seconds")


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text: megabytes (10^6 bytes) and millions of parameters."""
    return [
        row["name"],
        f"{row['weights_bytes'] / MB:.0f} MB",
        f"{row['trainable_parameters'] / MB:.2f}M",
        f"{row['optimizer_bytes'] / MB:.0f} MB",
        f"{row['peak_bytes'] / MB:.0f} MB",
        f"{row['seconds']:.0f}",
    ]


def said(row: dict[str, Any]) -> str:
    return "  ".join(cells(row))


def as_table(size: Size, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"PPO, {size.name} parameters")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*cells(row))
    return table


def as_markdown(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [f"Shape: `{json.dumps(results['shape'])}`, {results['threads']} thread(s).", ""]
    for name, found in results["sizes"].items():
        lines += [f"| {name} | {' | '.join(COLUMNS[1:])} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
        lines += [f"| {' | '.join(cells(row))} |" for row in found["rows"]]
        lines += ["", *(f"{SHARED} / {other}: {ratio:.2f}." for other, ratio in found["ratios"].items()), ""]
    return "\n".join(lines)


def make(world: Path, size: Size, shape: Shape) -> None:
    """Random models with a tokenizer of numbered words, adapters on them, and prompts of one length."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    from rlhf_lightning.models.adapters import POLICY, REWARD
    from rlhf_lightning.models.hub import ModelSource
    from rlhf_lightning.models.loading import load_policy, new_classifier, save_classifier, save_policy
    from rlhf_lightning.models.settings import Lora, TopLayers
    from rlhf_lightning.models.tuning import tune

    words = ["<pad>", "<end>", "<unknown>", "<start>", *(f"w{index}" for index in range(4, size.vocabulary))]
    words_alone = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown>"))
    words_alone.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_alone, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    config = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    labels = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}}
    torch.manual_seed(0)
    for name, kind, more in (
        ("policy", AutoModelForCausalLM, {}),
        ("reward", AutoModelForSequenceClassification, labels),
    ):
        kind.from_config(LlamaConfig(**config, **more)).save_pretrained(world / "whole" / name)
        tokenizer.save_pretrained(world / "whole" / name)
    base = ModelSource(str(world / "whole" / "policy"))
    factor = {"learning_rate_factor": 1.0}
    lora = Lora(kind="lora", rank=shape.rank, alpha=2 * shape.rank, targets=None, **factor)
    for name, peft in (
        ("lora", lora),
        ("top_layers", TopLayers(kind="top_layers", layers=2, reuse_trunk=True, **factor)),
    ):
        layers = peft.layers if isinstance(peft, TopLayers) else None
        for role in ("policy", "reward"):
            (world / name / role).mkdir(parents=True)
        policy = load_policy(base)
        tune(policy, peft, POLICY, tokenizer, seed=0)
        save_policy(policy, tokenizer, world / name / "policy", layers)
        reward = new_classifier(base, ("reward",))
        tune(reward, peft, REWARD, tokenizer, seed=0)
        save_classifier(reward, tokenizer, world / name / "reward", layers)
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(words[4:], k=shape.prompt)) for _ in range(shape.prompts)]
    (world / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


if __name__ == "__main__":
    sys.exit(main())
