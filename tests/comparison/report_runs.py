"""Run directories written by hand, in the format that `rlhf train` leaves, and comparisons of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.comparison.compare import compare
from rlhf_lightning.comparison.records import Comparison
from rlhf_lightning.comparison.request import Request

ITERATIONS = 20
HOSTILE = '</script><img src=x onerror="window.hacked=1"><!--<script>&amp;\''
SAMPLE = {
    "split": "iid",
    "prompt": "how do i burn the engine ?",
    "before": "take your time and burn it",
    "after": "i will not help because that could hurt someone",
    "proxy_before": -0.25,
    "proxy_after": 1.5,
    "gold_before": -1.0,
    "gold_after": 0.75,
}


def write_run(
    directory: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 1,
    objective: float = 0.5,
    state: str = "finished",
    error: str | None = None,
    overrides: Sequence[str] = (),
    gold: Sequence[float] | None = None,
    samples: Sequence[Mapping[str, Any]] = (SAMPLE,),
    provenance: Mapping[str, Any] | None = None,
    iterations: int = ITERATIONS,
) -> Path:
    """One run with PPO, in whatever state.

    Args:
        settings: config keys, dotted.
        gold: the gold reward by iteration; None: it rises to the objective.
    """
    directory.mkdir(parents=True)
    config: dict[str, Any] = {"seed": seed, "pipeline": {"stages": ["sft", "ppo", "evaluate"]}}
    config["evaluate"] = {"policies": ["sft", "ppo"]}
    for key, value in (settings or {}).items():
        section, _, leaf = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[leaf] = value
    # JSON is YAML too.
    write_json(directory / "config.yaml", config)
    (directory / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides))
    status = {"state": state, "stage": None if state == "finished" else "ppo", "started": "2026-11-22T10:00:00+00:00"}
    status |= {"updated": "2026-11-22T10:02:05+00:00", "error": {"what": error} if error else None}
    write_json(directory / "status.json", status)
    write_json(directory / "provenance.json", provenance or {"git": {"commit": "abc123", "dirty": False}})
    if state == "finished":
        write_json(directory / "metrics.json", metrics(objective))
        (directory / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in samples))
    golds = gold if gold is not None else [objective * (index + 1) / iterations for index in range(iterations)]
    (directory / "history.csv").write_text(history(golds))
    return directory


def metrics(objective: float) -> dict[str, Any]:
    """A metrics.json whose KL has a round square root: 4 nats are a distance of 2."""
    trained = {"gold_reward": objective, "proxy_reward": objective + 0.25, "kl": 4.0, "harmful_rate": 0.125}
    start = {"gold_reward": -0.5, "proxy_reward": 0.0, "kl": 0.0, "harmful_rate": 0.5}
    return {
        "objective": objective,
        "stages": {"ppo": {"score": 1.0, "reward_mean": 0.25, "reward_std": 0.5, "seconds": 60.0}},
        "evaluate": {"sft": {"iid": start}, "ppo": {"iid": trained}},
    }


def history(golds: Sequence[float]) -> str:
    """A history.csv: score and sqrt(KL) rise steadily, the gold reward is as given."""
    lines = ["stage,step,episodes,name,value", "sft,9,,sft/loss,0.75", "sft,19,,sft/loss,0.5"]
    for index, gold in enumerate(golds):
        kl = (2.0 * (index + 1) / len(golds)) ** 2
        figures = {"objective/raw_score": 0.1 * index, "objective/kl": kl, "objective/gold": gold}
        figures["objective/entropy"] = 1.0 / (index + 1)
        lines += [f"ppo,{8 * index + 7},{128 * (index + 1)},{name},{value}" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_sweep(home: Path, seeds: int = 3) -> Path:
    """kl.coef=0.02,0.1,0.5 by peft=none,lora by seeds. The weakest penalty with LoRA is over-optimized; one failed."""
    job = 0
    for coef, start in ((0.02, 0.7), (0.1, 0.9), (0.5, 0.4)):
        for peft, more in (("none", 0.05), ("lora", 0.0)):
            for seed in range(1, seeds + 1):
                objective = start + more + 0.01 * seed
                hacked = coef == 0.02 and peft == "lora"
                rise_and_fall = [1.0 - abs(index - 9) / 10 for index in range(ITERATIONS)]
                broken = (coef, peft, seed) == (0.5, "lora", 1)
                write_run(
                    home / str(job),
                    settings={"kl.coef": coef, "peft": peft},
                    seed=seed,
                    objective=objective,
                    state="failed" if broken else "finished",
                    error="The loss is not finite." if broken else None,
                    overrides=[f"kl.coef={coef}", f"peft={peft}", f"seed={seed}"],
                    gold=rise_and_fall if hacked else None,
                    samples=[{**SAMPLE, "after": f"response of job {job}"}],
                )
                job += 1
    return home


def compared(*directories: Path, by: tuple[str, ...] | None = None, baseline: str = "best") -> Comparison:
    return compare(directories, Request(by=by, metrics=None, sort=None, baseline=baseline))
