"""A reward model on the policy's frozen weights says what it says on its own, and weighs next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tuned import KINDS, disturb, peft, tuned_policy, write_base, write_policy, write_reward

from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.adapter_files import AdapterFiles, read_adapter
from rlhf_lightning.models.adapters import (
    CRITIC,
    POLICY,
    REFERENCE,
    REWARD,
    active_adapter,
    adapter_names,
    adapter_parameters,
    copy_adapter,
)
from rlhf_lightning.models.classifier import Classifier
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.sharing import classifier_on, why_not_shared
from rlhf_lightning.models.tuning import tune

MakeModel = Callable[..., PreTrainedModel]
Words = PreTrainedTokenizerFast

TOKENS = torch.tensor([[5, 9, 7, 12, 30], [11, 20, 4, 8, 1]])
TEXTS = ["w5 w9 w7", "w11", "w6 w6 w40 w33 w20"]


ARCHITECTURES = {"lora": "gpt2", "dora": "llama", "ia3": "llama", "prompt_tuning": "gpt2", "top_layers": "llama"}
"""Each kind on one of them where that is enough: scores are compared on both."""


@pytest.fixture
def base(kind: str, make_policy: MakeModel, words: Words, tmp_path: Path) -> Path:
    return write_base(make_policy(ARCHITECTURES[kind]), words, tmp_path / "base")


def source(directory: Path, dtype: str = "float32") -> ModelSource:
    return ModelSource(str(directory), dtype=dtype)


def begun(directory: Path, kind: str, words: Words) -> PreTrainedModel:
    """A policy that is trained from there."""
    policy = load_policy(source(directory))
    tune(policy, peft(kind), POLICY, words, seed=0)
    return policy


def shared(policy: PreTrainedModel, directory: Path, words: Words, name: str = REWARD) -> Classifier:
    files = read_adapter(directory)
    assert why_not_shared(policy, files) is None
    model, role = classifier_on(policy, files, name)
    return Classifier(model, words, 0, role)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(TOKENS).logits
    return result


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_model_of_its_own(
    kind: str, architecture: str, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    base = write_base(make_policy(architecture), words, tmp_path / "base")
    start = write_policy(base, peft(kind), words, tmp_path / "sft")
    reward = write_reward(base, peft(kind), words, tmp_path / "reward_model")
    policy = begun(start, kind, words)
    before, trained = logits(policy), [weight.requires_grad for weight in policy.parameters()]
    ours = shared(policy, reward, words)
    expected = Classifier.load(source(reward), None).logits_of_texts(TEXTS)
    assert torch.equal(ours.logits_of_texts(TEXTS), expected)
    assert expected.std() > 0.01
    # And the policy is what it was.
    assert torch.equal(logits(policy), before)
    now = [weight.requires_grad for name, weight in policy.named_parameters() if REWARD not in name.split(".")]
    assert now == trained
    # However far it is trained.
    disturb(policy)
    assert torch.equal(ours.logits_of_texts(TEXTS), expected)
    assert not torch.equal(logits(policy), before)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_policy_in_half_precision(kind: str, make_policy: MakeModel, words: Words, tmp_path: Path) -> None:
    """Whatever the reward model was trained in, it reads what this trunk gives."""
    base = write_base(make_policy(), words, tmp_path / "base")
    reward = write_reward(base, peft(kind), words, tmp_path / "reward_model")
    policy = load_policy(source(base, "bfloat16"))
    tune(policy, peft(kind), POLICY, words, seed=0)
    scores = shared(policy, reward, words).logits_of_texts(TEXTS)
    assert torch.equal(scores, Classifier.load(source(reward, "bfloat16"), None).logits_of_texts(TEXTS))
    whole = Classifier.load(source(reward), None).logits_of_texts(TEXTS)
    assert (scores - whole).abs().max() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_it_adds_no_weights_but_its_own(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    reward = write_reward(base, peft(kind), words, tmp_path / "reward_model")
    policy = begun(base, kind, words)
    of_policy = {id(weight) for weight in policy.parameters()}
    ours = shared(policy, reward, words)
    added = [weight for weight in ours.model.parameters() if id(weight) not in of_policy]
    held = read_adapter(reward).tensors
    assert sum(weight.numel() for weight in added) == sum(tensor.numel() for tensor in held.values())
    assert not any(weight.requires_grad for weight in added)


@pytest.mark.parametrize("kind", KINDS)
def test_several_reward_models_on_one_policy(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    rewards = [write_reward(base, peft(kind), words, tmp_path / f"reward_{seed}", seed) for seed in (2, 3)]
    policy = begun(base, kind, words)
    ours = [shared(policy, reward, words, f"{REWARD}{number}") for number, reward in enumerate(rewards)]
    expected = [Classifier.load(source(reward), None).logits_of_texts(TEXTS) for reward in rewards]
    for _ in range(2):
        for one, scores in zip(ours, expected, strict=True):
            assert torch.equal(one.logits_of_texts(TEXTS), scores)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "top_layers"])
def test_four_models_are_one(kind: str, base: Path, words: Words, tmp_path: Path) -> None:
    """Policy, reference, reward model and critic at once: each says what it says alone."""
    start = write_policy(base, peft(kind), words, tmp_path / "sft")
    reward = write_reward(base, peft(kind), words, tmp_path / "reward_model")
    policy = begun(start, kind, words)
    copy_adapter(policy, POLICY, REFERENCE)
    reference = FrozenReference.on_policy(policy, REFERENCE)
    classifier = shared(policy, reward, words)
    critic = SeparateCritic.on_policy(policy, POLICY)
    assert adapter_names(policy) == [POLICY, REFERENCE, REWARD, CRITIC]
    alone = begun(start, kind, words)
    own_critic = SeparateCritic.from_policy(alone)
    generator = torch.Generator().manual_seed(3)
    torch.nn.init.normal_(critic.head.linear.weight, generator=generator)
    own_critic.head.load_state_dict(critic.head.state_dict())
    actors = {"shared": ActorCritic(policy, critic), "separate": ActorCritic(alone, own_critic)}
    mask = torch.ones_like(TOKENS)
    frozen = FrozenReference(load_policy(source(start)))
    fingerprint, scores = reference.fingerprint(), Classifier.load(source(reward), None).logits_of_texts(TEXTS)
    losses: dict[str, list[float]] = {}
    for name, actor in actors.items():
        groups = [actor.policy_parameters(), actor.critic_parameters()]
        assert sum(map(len, groups)) == sum(weight.requires_grad for weight in actor.parameters())
        optimizer = torch.optim.SGD([weight for group in groups for weight in group], lr=0.05)
        for _ in range(2):
            outputs = actor(TOKENS, mask, 3, 1.0)
            loss = outputs.logprobs.mean() + outputs.values.square().mean()
            losses.setdefault(name, []).append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert torch.equal(reference.logits(TOKENS, mask, 3), frozen.logits(TOKENS, mask, 3))
            assert torch.equal(classifier.logits_of_texts(TEXTS), scores)
            assert active_adapter(actor.policy) == POLICY
    assert losses["shared"] == pytest.approx(losses["separate"], abs=1e-6)
    assert abs(losses["shared"][0] - losses["shared"][-1]) > 1e-2
    assert reference.fingerprint() == fingerprint
    theirs = [weight for name in (POLICY, CRITIC) for weight in adapter_parameters(policy, name)]
    assert all(weight.requires_grad for weight in theirs)


REASONS: dict[str, tuple[str, str, str]] = {
    "a policy that is trained whole": ("none", "lora", "the policy trains all its weights"),
    "a reward model that is a whole model": ("lora", "none", "the reward model is a whole model"),
    "other layers": ("top_layers", "lora", "do not train the same part"),
    "an adapter and layers": ("lora", "top_layers", "do not train the same part"),
    "other kinds": ("lora", "ia3", "adapters of different kinds"),
    "vectors and updates": ("prompt_tuning", "lora", "adapters of different kinds"),
}


def files_of(base: Path, kind: str, words: Words, directory: Path) -> AdapterFiles | None:
    write_reward(base, peft(kind), words, directory)
    return read_adapter(directory) if kind != "none" else None


@pytest.mark.parametrize("why", REASONS)
def test_what_cannot_be_shared(why: str, make_policy: MakeModel, words: Words, tmp_path: Path) -> None:
    base = write_base(make_policy(), words, tmp_path / "base")
    policy_kind, reward_kind, reason = REASONS[why]
    policy = tuned_policy(base, peft(policy_kind), words)
    said = why_not_shared(policy, files_of(base, reward_kind, words, tmp_path / "reward_model"))
    assert said is not None
    assert reason in said


@pytest.mark.parametrize("kind", ["lora", "top_layers"])
def test_a_policy_that_comes_with_an_adapter_and_is_trained_whole_shares_nothing(
    kind: str, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    base = write_base(make_policy(), words, tmp_path / "base")
    files = files_of(base, kind, words, tmp_path / "reward_model")
    policy = load_policy(source(write_policy(base, peft(kind), words, tmp_path / "sft")))
    tune(policy, peft("none"), POLICY, words, seed=0)
    assert why_not_shared(policy, files) == "the policy trains all its weights (peft=none)"


@pytest.mark.parametrize("kind", KINDS)
def test_other_bases_cannot_be_shared(kind: str, make_policy: MakeModel, words: Words, tmp_path: Path) -> None:
    base = write_base(make_policy(), words, tmp_path / "base")
    other = write_base(make_policy(seed=1), words, tmp_path / "other")
    policy = begun(base, kind, words)
    for directory in (other, base):
        files = files_of(directory, kind, words, tmp_path / f"{directory.name}_reward")
        reason = why_not_shared(policy, files)
        assert reason == (None if directory == base else "policy and reward model start from different base models")


def test_another_rank_can_be_shared(make_policy: MakeModel, words: Words, tmp_path: Path) -> None:
    """Adapters under names need not be of one size."""
    base = write_base(make_policy(), words, tmp_path / "base")
    reward = write_reward(base, peft("lora", rank=2), words, tmp_path / "reward_model")
    policy = begun(base, "lora", words)
    expected = Classifier.load(source(reward), None).logits_of_texts(TEXTS)
    assert torch.equal(shared(policy, reward, words).logits_of_texts(TEXTS), expected)
    own = write_reward(base, peft("dora"), words, tmp_path / "dora")
    expected = Classifier.load(source(own), None).logits_of_texts(TEXTS)
    assert torch.equal(shared(policy, own, words, "dora").logits_of_texts(TEXTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_and_a_reward_model_begun_from_one_whole_model(
    kind: str, make_policy: MakeModel, words: Words, tmp_path: Path
) -> None:
    """The whole model is the base of both, as after SFT of all weights."""
    sft = write_base(make_policy(seed=4), words, tmp_path / "sft")
    reward = write_reward(sft, peft(kind), words, tmp_path / "reward_model")
    policy = begun(sft, kind, words)
    assert why_not_shared(policy, read_adapter(reward)) is None
    expected = Classifier.load(source(reward), None).logits_of_texts(TEXTS)
    assert torch.equal(shared(policy, reward, words).logits_of_texts(TEXTS), expected)
