"""One copy of the frozen weights for policy, reference, reward model and critic changes no loss.

Each pair of runs is the real stage `ppo`: with `model.share_backbone=true`, where it must share or refuse, and with
`false`, where each model is opened by itself and the reference is a frozen copy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_runs import PpoRun, composed, run_config
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tuned import KINDS, VALUES, peft, write_base, write_policy, write_reward

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.models.adapters import CRITIC, POLICY, REFERENCE, REWARD, adapter_names
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.top_layers import top_layers

MakeModel = Callable[..., PreTrainedModel]

Changes = dict[str, dict[str, Any]]

FOUR_UPDATES: Changes = {
    "ppo": {
        "iterations": 2,
        "epochs": 2,
        "minibatches": 1,
        "micro_batch_size": 8,
        "entropy_coef": 0.01,
        "learning_rate": 0.03,
        "critic_learning_rate": 0.03,
    },
    "optimizer": {"_target_": "torch.optim.SGD"},
}
"""SGD: Adam would make the same small gradient into a large step of either sign."""


@pytest.fixture(scope="module")
def bases(
    artifacts: Path, make_policy: MakeModel, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a base of two blocks and, of each kind, a policy and a reward model that were trained on it."""
    folder = tmp_path_factory.mktemp("bases")
    policy = make_policy(seed=0)
    policy.generation_config.eos_token_id = [1, *range(40, 50)]
    base = write_base(policy, words, folder / "base")
    for kind in KINDS:
        write_policy(base, peft(kind), words, folder / kind / "sft", seed=3)
        write_reward(base, peft(kind), words, folder / kind / "reward_model", seed=4)
        write_reward(base, peft(kind), words, folder / kind / "other_reward", seed=5)
    (folder / "prompts.jsonl").write_bytes((artifacts / "prompts.jsonl").read_bytes())
    return folder


class Watched:
    """What was seen while the runs of a test went on."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.critics: list[Any] = []
        self.references: list[FrozenReference] = []
        self.policies: list[PreTrainedModel] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Every loss of a micro-batch, in the order of the runs, and the models they came from."""
    seen, step, start = Watched(), PPO.training_step, PPO.__init__

    def begin(self: PPO, actor_critic: ActorCritic, reference: FrozenReference, *rest: Any) -> None:
        start(self, actor_critic, reference, *rest)
        seen.losses.append([])
        seen.policies.append(actor_critic.policy)
        seen.critics.append(actor_critic.critic)
        seen.references.append(reference)

    def training_step(self: PPO, *arguments: Any) -> Tensor:
        loss = step(self, *arguments)
        seen.losses[-1].append(float(loss.detach()))
        return loss

    monkeypatch.setattr(PPO, "__init__", begin)
    monkeypatch.setattr(PPO, "training_step", training_step)
    return seen


@pytest.fixture(scope="module")
def plain(artifacts: Path) -> dict[str, Any]:
    return composed(artifacts, "callbacks.self_checks=true")


@pytest.fixture
def run(bases: Path, plain: dict[str, Any], tmp_path: Path) -> Callable[..., PpoRun]:
    """Four updates of a policy of that kind, from its SFT artifact unless another is named."""

    def trained(kind: str, share: bool | str, *changes: Changes, start: str | None = None) -> PpoRun:
        config = {**plain, "peft": {"kind": kind, "learning_rate_factor": 1.0, **VALUES[kind]}}
        every: list[Changes] = [
            FOUR_UPDATES,
            {
                "model": {"share_backbone": share, "name_or_path": str(bases / "base")},
                "data": {"prompts": str(bases / "prompts.jsonl")},
                "ppo": {
                    "policy_from": str(bases / (start or f"{kind}/sft")),
                    "reward_from": str(bases / kind / "reward_model"),
                },
            },
            *changes,
        ]
        for change in every:
            for section, values in change.items():
                replaced = "kind" in values or "_target_" in values
                config[section] = dict(values) if replaced else {**config[section], **values}
        return run_config(config, tmp_path / f"run_{len(list(tmp_path.iterdir()))}")

    return trained


def assert_same(watched: Watched, one: PpoRun, other: PpoRun) -> None:
    first, second = watched.losses
    assert len(first) == len(second) == 4
    assert first == pytest.approx(second, abs=1e-5)
    assert max(first) - min(first) > 1e-2
    assert one.figures.keys() == other.figures.keys()
    for name, values in one.figures.items():
        assert values == pytest.approx(other.figures[name], abs=1e-4, rel=1e-4), name
    assert one.distance(other) < 1e-5
    assert one.drift(other) < 1e-6


EXACT: Changes = {"kl": {"kind": "fixed", "estimator": "exact", "apply_to": "loss", "coef": 0.3}}
RECOMPUTED: Changes = {"model": {"gradient_checkpointing": True}}

CHOICES: list[tuple[str, str, str | None, tuple[Changes, ...]]] = [
    ("lora", "policy_trunk", None, (RECOMPUTED,)),
    ("lora", "separate", "base", ()),
    ("lora", "separate", None, (RECOMPUTED, EXACT)),
    ("dora", "policy_trunk", "base", (RECOMPUTED, EXACT)),
    ("dora", "reward_model", None, ()),
    ("ia3", "reward_model", "base", (RECOMPUTED,)),
    ("prompt_tuning", "policy_trunk", "base", (EXACT,)),
    ("prompt_tuning", "separate", None, (RECOMPUTED,)),
    ("top_layers", "separate", "base", ()),
    ("top_layers", "reward_model", None, (RECOMPUTED, EXACT)),
]
"""Kind, critic, start, changes: each kind and each critic twice or more, with and without the rest."""


@pytest.mark.parametrize(("kind", "critic", "start", "changes"), CHOICES)
def test_shared_and_separate_models_give_the_same_losses(
    kind: str,
    critic: str,
    start: str | None,
    changes: tuple[Changes, ...],
    bases: Path,
    run: Callable[..., PpoRun],
    watched: Watched,
) -> None:
    runs = [run(kind, share, {"ppo": {"critic": critic}}, *changes, start=start) for share in (True, False)]
    assert_same(watched, *runs)
    shared, alone = watched.policies
    if kind != "top_layers":
        expected = {POLICY, REWARD} | ({CRITIC} if critic != "policy_trunk" else set())
        expected |= {REFERENCE} if start is None or kind == "prompt_tuning" else set()
        assert set(adapter_names(shared)) == expected
        assert adapter_names(alone) == [POLICY]
    assert_frozen_weights_are_what_they_were(shared, load_policy(ModelSource(str(bases / "base"))), kind)


def assert_frozen_weights_are_what_they_were(policy: PreTrainedModel, start: PreTrainedModel, kind: str) -> None:
    own = dict(policy.named_parameters())
    above = tuple(f"{name}." for name in top_layers(start, 1)) if kind == "top_layers" else ()
    compared = 0
    for name, weight in start.named_parameters():
        if above and name.startswith(above):
            continue
        found = own.get(name)
        if found is None:  # inside a layer that an adapter was put around
            module, _, last = name.rpartition(".")
            found = own[f"{module}.base_layer.{last}"]
        assert torch.equal(found, weight), name
        assert not found.requires_grad
        compared += 1
    assert compared == len(list(start.parameters())) - (10 if kind == "top_layers" else 0)


def test_an_ensemble_on_one_policy(run: Callable[..., PpoRun], watched: Watched, bases: Path) -> None:
    rewards = [str(bases / "lora" / name) for name in ("reward_model", "other_reward")]
    kept = {"standardize_on_reference": None, "running_normalization": False, "scale": 1.0, "clip": None}
    ensemble = {"kind": "ensemble", "models": rewards, "combine": "mean_minus_std", "disagreement_coef": 0.5}
    changes: Changes = {"reward": {**kept, "length_penalty": 0.0, **ensemble}}
    assert_same(watched, run("lora", True, changes), run("lora", False, changes))
    assert adapter_names(watched.policies[0]) == [POLICY, REFERENCE, REWARD, f"{REWARD}_2"]


@pytest.mark.parametrize(
    ("kind", "start"),
    [("lora", None), ("ia3", "base"), ("prompt_tuning", "base")],
)
def test_the_reference_is_a_frozen_copy_bit_for_bit(
    kind: str, start: str | None, run: Callable[..., PpoRun], watched: Watched
) -> None:
    """Of rollouts and of the exact KL; the other parts stay as they are."""
    run(kind, "auto", EXACT, {"reference": {"kind": "adapter_off"}}, start=start)
    run(kind, "auto", EXACT, {"reference": {"kind": "frozen_copy"}}, start=start)
    off, copied = watched.references
    assert off.model is watched.policies[0]
    assert copied.model is not watched.policies[1]
    assert watched.losses[0] == watched.losses[1]
    sequences = torch.arange(3, 33).view(3, 10)
    mask = torch.ones_like(sequences)
    assert torch.equal(off.logits(sequences, mask, 4), copied.logits(sequences, mask, 4))
