"""Fixtures: tiny models with random weights, a tokenizer of a few words, and rollouts of them, made in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.algorithms.ppo_iteration import RolloutCollector
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.sharing import Branch
from rlhf_lightning.models.top_layers import train_top_layers
from rlhf_lightning.rollouts.reward_shaping import KlController, RewardShaper
from rlhf_lightning.rollouts.sampler import SampledResponse, Sampler
from rlhf_lightning.rollouts.settings import AdaptiveKl, FixedKl, GaeSettings, KlSettings, LearnedReward, NoKl

VOCABULARY = 50
"""Tokens: <pad>, <eos>, <unk> and the words w3 ... w49, whose numbers are their ids."""


@pytest.fixture(scope="session")
def make_words() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds tokenizers that split at spaces; `w7` has id 7, `<pad>` 0, `<eos>` 1 and `<unk>` 2."""

    def build(*, pad: str | None = "<pad>", eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
        tokens = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(3, VOCABULARY))]
        backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
        backend.pre_tokenizer = WhitespaceSplit()
        named = {"pad_token": pad, "eos_token": eos, "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, **{name: token for name, token in named.items() if token is not None}
        )

    return build


@pytest.fixture(scope="session")
def words(make_words: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_words()


def _config(kind: str, values: dict[str, Any]) -> PreTrainedConfig:
    # Weights ten times as large as usual: what a model says then depends visibly on what it reads.
    shared = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1, **values}
    if kind == "gpt2":
        return GPT2Config(**{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **shared})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**{**sizes, "num_key_value_heads": 1, "max_position_embeddings": 64, **shared})


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., PreTrainedModel]:
    """Builds language models of two layers and 16 dimensions, `llama` or `gpt2`, as a function of the seed."""

    def build(kind: str = "llama", seed: int = 0, **config: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        model_class: Any = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}[kind]
        model: PreTrainedModel = model_class(_config(kind, config)).eval()
        return model

    return build


@pytest.fixture(scope="session")
def make_reward_model() -> Callable[..., PreTrainedModel]:
    """Builds sequence classifiers of the same size; `labels` are their names in the order of the logits."""

    def build(
        kind: str = "llama", seed: int = 0, labels: tuple[str, ...] = ("reward",), **config: Any
    ) -> PreTrainedModel:
        torch.manual_seed(seed)
        names = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
        model_class: Any = {"llama": LlamaForSequenceClassification, "gpt2": GPT2ForSequenceClassification}[kind]
        model: PreTrainedModel = model_class(_config(kind, {"pad_token_id": 0, **names, **config})).eval()
        return model

    return build


@pytest.fixture(scope="session")
def padded() -> Callable[..., tuple[Tensor, Tensor]]:
    """Sequences and attention mask of (prompt, response) rows, padded on the left and on the right."""

    def build(
        rows: Sequence[tuple[Sequence[int], Sequence[int]]], prompt_width: int, response_width: int, pad: int
    ) -> tuple[Tensor, Tensor]:
        sequences, masks = [], []
        for prompt, response in rows:
            left, right = prompt_width - len(prompt), response_width - len(response)
            sequences.append([pad] * left + [*prompt, *response] + [pad] * right)
            masks.append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
        return torch.tensor(sequences), torch.tensor(masks)

    return build


class RuleScorer:
    """A score that is a function of the response."""

    def __init__(self, rule: Callable[[SampledResponse], float]) -> None:
        self.rule = rule

    def to(self, device: torch.device) -> RuleScorer:
        del device
        return self

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        return torch.tensor([self.rule(response) for response in responses])


def kl_settings(kind: str = "fixed", **values: Any) -> KlSettings:
    """A KL penalty; k1 in the reward with coefficient 0.1, where nothing else is said."""
    if kind == "none":
        return NoKl(kind="none")
    chosen = {"estimator": "k1", "apply_to": "reward", "coef": 0.1, **values}
    if kind == "fixed":
        return FixedKl(kind="fixed", **chosen)
    return AdaptiveKl(kind="adaptive", **{"target": 3.0, "horizon": 500, **chosen})


def reward_settings(**values: Any) -> LearnedReward:
    """A reward whose raw scores are its scores, where nothing else is said."""
    plain = {"standardize_on_reference": None, "running_normalization": False, "scale": 1.0, "clip": None}
    return LearnedReward(kind="learned", **{**plain, "length_penalty": 0.0, **values})


@pytest.fixture(scope="session")
def make_kl() -> Callable[..., KlSettings]:
    """Builds settings of the KL penalty: kind, then values."""
    return kl_settings


@pytest.fixture(scope="session")
def make_reward() -> Callable[..., LearnedReward]:
    """Builds settings of a reward whose raw scores are its scores, where nothing else is said."""
    return reward_settings


@pytest.fixture(scope="session")
def make_scorer() -> type[RuleScorer]:
    return RuleScorer


@pytest.fixture(scope="session")
def make_collector(words: PreTrainedTokenizerFast) -> Callable[..., RolloutCollector]:
    """Builds collectors on a policy; the reference is a copy of it, unless another is given.

    With `top_layers` all but that many blocks of the policy are frozen, and the reference has them in common with it.
    """

    def build(
        policy: PreTrainedModel,
        rule: Callable[[SampledResponse], float],
        *,
        reference: PreTrainedModel | None = None,
        critic: SeparateCritic | None = None,
        sampler: Any = None,
        chunk_size: int = 4,
        temperature: float = 1.0,
        max_new_tokens: int = 5,
        seed: int = 0,
        kl: KlSettings | None = None,
        kl_coef: float = 0.1,
        missing_eos_penalty: float | None = None,
        reward: dict[str, Any] | None = None,
        whiten: bool = True,
        whiten_rewards: bool = False,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        top_layers: int | None = None,
        reuse_trunk: bool = False,
    ) -> RolloutCollector:
        if top_layers is not None:
            train_top_layers(policy, top_layers)
        branch = Branch.of(policy, top_layers) if top_layers is not None and reuse_trunk else None
        return RolloutCollector(
            ActorCritic(policy, critic, branch),
            sampler or Sampler(policy, words, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed),
            FrozenReference.copy_of(reference or policy)
            if top_layers is None
            else FrozenReference.on_trunk_of(policy, branch),
            RuleScorer(rule),
            shaper=RewardShaper(reward_settings(**(reward or {})), missing_eos_penalty),
            kl=KlController(kl or kl_settings(coef=kl_coef)),
            advantage=GaeSettings(
                kind="gae", gamma=gamma, gae_lambda=gae_lambda, whiten=whiten, whiten_rewards=whiten_rewards
            ),
            chunk_size=chunk_size,
            temperature=temperature,
        )

    return build
