"""What a training holds before activations, against bytes counted by hand, and the peak that is measured."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.optim import SGD, Adafactor, AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tuned import peft, tuned_classifier, tuned_policy, write_base, write_policy, write_reward

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import MemoryExhaustedError
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.stages.actors import open_actors, open_critic
from rlhf_lightning.stages.context import RunInputs, StageContext
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.monitoring import StageMemory, StaticMemory, memory_explained, memory_table
from rlhf_lightning.stages.ppo import PpoSettings, resident_models
from rlhf_lightning.stages.reward_kinds import REWARDS
from rlhf_lightning.stages.rewards import RewardStatistics
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

Compose = Callable[..., RunSettings]
CPU = torch.device("cpu")
OPTIMIZER = partial(AdamW, betas=(0.9, 0.999))
MIB = 2**20

# Llama of hidden size H = 16, two heads of 8, one of them for keys and values, MLP of 32, vocabulary of 50, two blocks.
# A block: queries 16 * 16, keys and values 16 * 8 each, output 16 * 16, MLP 3 * 16 * 32, two norms of 16.
BLOCK = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16
TRUNK = 50 * 16 + 2 * BLOCK + 16  # embeddings, blocks, final norm
LM_HEAD = 50 * 16
SCORE = 16
VALUE_HEAD = 16 + 1
# Rank 4 on the seven linear layers of both blocks: 4 * (inputs + outputs) each.
LORA = 2 * 4 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32))
TOP = BLOCK + 16  # one block and the final norm
ROTARY = 2 * 4 * 4
"""Bytes of a trunk's buffers: four frequencies of the positions, and the original ones."""
TENSORS_OF_BLOCK = 9


def adamw(parameters: int, tensors: int) -> int:
    """Bytes of AdamW's state in float32: two moments a weight, and a count of steps a tensor."""
    return 2 * 4 * parameters + 4 * tensors


@pytest.fixture(scope="module")
def artifacts(
    make_policy: Callable[..., PreTrainedModel],
    make_reward_model: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folders `none`, `lora` and `top_layers` with a policy and a reward model each, and the data of a run."""
    directory = tmp_path_factory.mktemp("artifacts")
    base = write_base(make_policy(), words, directory / "none" / "policy")
    write_base(make_reward_model(), words, directory / "none" / "reward")
    for kind in ("lora", "top_layers"):
        write_policy(base, peft(kind), words, directory / kind / "policy")
        write_reward(base, peft(kind), words, directory / kind / "reward")
    prompts = [{"prompt": f"w{number} w5"} for number in range(10, 30)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    rows = [{**row, "response": "w7 w8"} for row in prompts]
    (directory / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def of_ppo(composed: Compose, artifacts: Path, directory: Path, kind: str, *overrides: str) -> StaticMemory:
    """The models of stage `ppo`, opened as it opens them."""
    settings = composed(
        *("pipeline=ppo", "model=hub", f"model.name_or_path={artifacts / 'none' / 'policy'}", f"peft={kind}"),
        *(f"ppo.policy_from={artifacts / kind / 'policy'}", f"ppo.reward_from={artifacts / kind / 'reward'}"),
        *("data=files", f"data.prompts={artifacts / 'prompts.jsonl'}", "trainer.accelerator=cpu", *overrides),
    )
    inputs = RunInputs(settings, RunDirectory.create(directory / "run", settings.model_dump(mode="json"), ()))
    tracker: Any = None
    context = StageContext("ppo", inputs, directory, tracker, None, StageMemory(CPU), "key")
    encoder = inputs.encoder(inputs.model(context.section(PpoSettings).policy_from))
    actors = open_actors(context, encoder)
    rewards = REWARDS[settings.reward.kind].open(context, encoder, actors.policy)
    critic = open_critic(context, actors, encoder, RewardStatistics(mean=0.0, std=1.0))
    actor_critic = ActorCritic(actors.policy, critic, actors.branch)
    return StaticMemory.of(resident_models(actor_critic, actors.reference, rewards), inputs.make_optimizer)


WHOLE = 4 * (TRUNK + LM_HEAD) + ROTARY
LORA_OVERRIDES = ("peft.rank=4", "peft.alpha=8")


@pytest.mark.parametrize(
    ("kind", "overrides", "weights", "trained", "tensors"),
    [
        pytest.param(
            "none",
            ("ppo.critic=separate",),
            (WHOLE, WHOLE, 4 * (TRUNK + SCORE) + ROTARY, 4 * (TRUNK + VALUE_HEAD) + ROTARY),
            (TRUNK + LM_HEAD) + (TRUNK + VALUE_HEAD),
            (2 * TENSORS_OF_BLOCK + 3) + (2 * TENSORS_OF_BLOCK + 2 + 2),
            id="all weights, a frozen copy as the reference",
        ),
        pytest.param(
            "none",
            ("ppo.critic=policy_trunk",),
            (WHOLE, WHOLE, 4 * (TRUNK + SCORE) + ROTARY, 4 * VALUE_HEAD),
            TRUNK + LM_HEAD + VALUE_HEAD,
            (2 * TENSORS_OF_BLOCK + 3) + 2,
            id="all weights, a value head",
        ),
        pytest.param(
            "lora",
            (*LORA_OVERRIDES, "ppo.critic=separate"),
            # Adapters of policy, reference, reward model and critic lie on the policy's trunk.
            (WHOLE + 4 * 4 * LORA, 0, 4 * SCORE, 4 * VALUE_HEAD),
            2 * LORA + VALUE_HEAD,
            2 * (2 * 7 * 2) + 2,
            id="LoRA on one backbone, the adapter switched for the reference",
        ),
        pytest.param(
            "lora",
            (*LORA_OVERRIDES, "ppo.critic=separate", "model.share_backbone=false"),
            (
                WHOLE + 4 * LORA,
                WHOLE + 4 * LORA,
                4 * (TRUNK + SCORE + LORA) + ROTARY,
                4 * (TRUNK + LORA + VALUE_HEAD) + ROTARY,
            ),
            2 * LORA + VALUE_HEAD,
            2 * (2 * 7 * 2) + 2,
            id="LoRA on separate models",
        ),
        pytest.param(
            "top_layers",
            ("peft.layers=1", "ppo.critic=separate"),
            (WHOLE, 4 * TOP + ROTARY, 4 * (TOP + SCORE) + ROTARY, 4 * (TOP + VALUE_HEAD) + ROTARY),
            TOP + (TOP + VALUE_HEAD),
            2 * (TENSORS_OF_BLOCK + 1) + 2,
            id="top layers, the trunk in common with the reference",
        ),
    ],
)
def test_models_of_ppo(
    kind: str,
    overrides: tuple[str, ...],
    weights: tuple[int, ...],
    trained: int,
    tensors: int,
    composed: Compose,
    artifacts: Path,
    tmp_path: Path,
) -> None:
    static = of_ppo(composed, artifacts, tmp_path, kind, *overrides)
    assert static.weights == dict(zip(("policy", "reference", "reward model", "critic"), weights, strict=True))
    assert static.trainable_parameters == trained
    assert static.gradients == 4 * trained
    assert static.optimizer == adamw(trained, tensors)


def test_each_reward_model_of_an_ensemble_counts(composed: Compose, artifacts: Path, tmp_path: Path) -> None:
    reward = artifacts / "none" / "reward"
    static = of_ppo(composed, artifacts, tmp_path, "none", "reward=ensemble", f"reward.models=[{reward},{reward}]")
    assert static.weights["reward model"] == static.weights["reward model 2"] == 4 * (TRUNK + SCORE) + ROTARY


def test_a_policy_and_a_reward_model_alone(artifacts: Path, words: PreTrainedTokenizerFast) -> None:
    base = artifacts / "none" / "policy"
    policy = StaticMemory.of({"policy": tuned_policy(base, peft("lora"), words)}, OPTIMIZER)
    assert policy == StaticMemory({"policy": WHOLE + 4 * LORA}, LORA, 4 * LORA, adamw(LORA, 2 * 7 * 2))
    classifier = StaticMemory.of({"reward model": tuned_classifier(base, peft("lora"), words)}, OPTIMIZER)
    trained = LORA + SCORE  # the head is trained beside the adapter
    held = 4 * (TRUNK + trained) + ROTARY
    assert classifier == StaticMemory({"reward model": held}, trained, 4 * trained, adamw(trained, 2 * 7 * 2 + 1))


def test_gradients_and_moments_have_the_dtype_of_their_weight() -> None:
    half, whole = torch.nn.Linear(10, 5, dtype=torch.bfloat16), torch.nn.Linear(5, 1)
    static = StaticMemory.of({"half": half, "whole": whole}, OPTIMIZER)
    assert static.weights == {"half": 2 * 55, "whole": 4 * 6}
    assert static.gradients == 2 * 55 + 4 * 6
    assert static.optimizer == 2 * (2 * 55 + 4 * 6) + 4 * 4, "and a count of steps for each of four tensors"


def test_tied_and_frozen_weights() -> None:
    one, other = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False).requires_grad_(False)
    model = torch.nn.Sequential(one, torch.nn.Linear(10, 10, bias=False), other)
    model[1].weight = one.weight
    assert StaticMemory.of({"model": model}, SGD) == StaticMemory({"model": 4 * 200}, 100, 4 * 100, 0)


def test_an_optimizer_that_asks_for_data_is_of_unknown_size(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        static = StaticMemory.of({"model": torch.nn.Linear(10, 5)}, Adafactor)
    assert static.optimizer is None
    assert "optimizer of unknown size" in str(static)
    assert "not known before its first step" in caplog.text


@pytest.mark.slow
def test_a_run_keeps_the_figures_of_its_training(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        *("train", "debug=tiny", "pipeline=sft", "model=hub", f"model.name_or_path={artifacts / 'none' / 'policy'}"),
        *("data=files", f"data.demonstrations={artifacts / 'demonstrations.jsonl'}", "trainer.accelerator=cpu"),
        *("sft.batch_size=4", "sft.micro_batch_size=2", "logger=none", "cache.mode=off", "paths.run_dir=run"),
    ]
    with caplog.at_level(logging.INFO):
        assert main(settings) == 0
    memory = json.loads(Path("run/metrics.json").read_text())["stages"]["sft"]["memory"]
    assert memory.pop("measured_peak_bytes") > 100 * MIB, "Python and torch alone are as large"
    trained = TRUNK + LM_HEAD
    assert memory == {
        "weights_bytes": WHOLE,
        "trainable_parameters": trained,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": adamw(trained, 2 * TENSORS_OF_BLOCK + 3),
    }
    # 25,184 bytes of weights, four for each of 6,288 gradients, eight and a few in the optimizer
    assert "weights 25 KiB (policy 25 KiB), gradients 25 KiB, optimizer 49 KiB." in caplog.text


def test_the_peak_of_a_cpu_is_seen_although_it_has_passed() -> None:
    with StageMemory(CPU) as before:
        pass
    with StageMemory(CPU) as memory:
        held = torch.ones(128 * MIB // 4)
        time.sleep(0.5)
        del held
        time.sleep(0.2)
    assert memory.peak - before.peak == pytest.approx(128 * MIB, rel=0.1)
    assert memory.figures() == {"measured_peak_bytes": memory.peak}


def test_the_peak_of_a_gpu_is_what_torch_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", began.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * MIB if device in began else 9 * MIB)
    with StageMemory(torch.device("cuda")) as memory:
        assert began == [torch.device("cuda")]
    assert memory.peak == 7 * MIB


def test_out_of_memory_says_what_is_held_whatever_the_batches_are() -> None:
    memory = StageMemory(CPU)
    memory.static = StaticMemory({"policy": 3 * 2**30, "critic": 2**20}, 10, 512 * MIB, 2**30)
    with pytest.raises(MemoryExhaustedError) as raised, memory_explained("ppo", STAGES["ppo"].relief, memory):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert str(raised.value).startswith(
        "Stage ppo ran out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. Whatever the batches are, it "
        "holds weights 3.00 GiB (policy 3.00 GiB, critic 1 MiB), gradients 512 MiB, optimizer 1.00 GiB."
    )
    assert "ppo.micro_batch_size" in (raised.value.fix or "")
    assert "peft=lora" in (raised.value.fix or "")


def test_the_table_of_a_run() -> None:
    stages = {
        "sft": {
            "memory": {
                "weights_bytes": 3 * MIB,
                "trainable_parameters": 10,
                "gradients_bytes": 2 * MIB,
                "optimizer_bytes": None,
                "measured_peak_bytes": 600 * MIB,
            }
        },
        "evaluate": {"memory": {"measured_peak_bytes": 2**31}},
    }
    console = Console(width=100)
    with console.capture() as capture:
        console.print(memory_table(stages))
    rows = [line.split() for line in capture.get().splitlines()]
    assert ["stage", "weights", "gradients", "optimizer", "peak"] in rows
    assert ["sft", "3", "MiB", "2", "MiB", "-", "600", "MiB"] in rows
    assert ["evaluate", "-", "-", "-", "2.00", "GiB"] in rows
