"""What is trained of a model under each kind of `peft`, and what a model that comes with an adapter goes on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from tuned import KINDS, UPDATES_OF_WEIGHTS, disturb, layers_of, peft, trained_names, write_base, write_policy

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.adapters import POLICY, REWARD, active_adapter, adapter_names
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy, save_policy
from rlhf_lightning.models.settings import PeftSettings, learning_rate_factor
from rlhf_lightning.models.tuning import tune

MakeModel = Callable[..., PreTrainedModel]

TOKENS = torch.tensor([[5, 9, 7, 12, 30], [11, 20, 4, 8, 1]])

# Of the tiny Llama: hidden 16, feed-forward 32, keys and values 8 wide, two blocks.
LORA = 2 * 4 * sum((16 + 16, 16 + 8, 16 + 8, 16 + 16, 16 + 32, 16 + 32, 32 + 16))
MAGNITUDES = 2 * (16 + 8 + 8 + 16 + 32 + 32 + 16)
BLOCK = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16
TRAINED = {
    "none": 2 * 50 * 16 + 2 * BLOCK + 16,
    "lora": LORA,
    "dora": LORA + MAGNITUDES,
    "ia3": 2 * (8 + 8 + 32),
    "prompt_tuning": 3 * 16,
    "top_layers": BLOCK + 16,
}


def count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.fixture
def tuned(make_policy: MakeModel, words: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    def build(settings: PeftSettings, kind: str = "llama", seed: int = 0) -> PreTrainedModel:
        model = make_policy(kind)
        torch.manual_seed(seed)
        tune(model, settings, POLICY, words, seed)
        return model

    return build


@pytest.mark.parametrize("kind", TRAINED)
def test_so_many_weights_of_a_policy_are_trained(kind: str, tuned: Callable[..., PreTrainedModel]) -> None:
    model = tuned(peft(kind))
    assert count(model) == TRAINED[kind]
    model(TOKENS).logits.square().mean().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained_names(model)


@pytest.mark.parametrize("kind", TRAINED)
def test_and_of_a_classifier_its_head_too(
    kind: str, make_reward_model: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    model = make_reward_model()
    tune(model, peft(kind), REWARD, words, seed=0)
    lm_head = 50 * 16 if kind == "none" else 0
    assert count(model) == TRAINED[kind] - lm_head + 16
    assert "score.weight" in trained_names(model)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_are_not_trained(kind: str, make_policy: MakeModel, words: PreTrainedTokenizerFast) -> None:
    model = make_policy(tie_word_embeddings=True)
    tune(model, peft(kind), POLICY, words, seed=0)
    assert count(model) == TRAINED[kind]


def test_chosen_layers_and_rank(tuned: Callable[..., PreTrainedModel]) -> None:
    model = tuned(peft("lora", rank=2, targets=["q_proj", "v_proj"]))
    assert count(model) == 2 * 2 * (32 + 24)
    assert {name.split(".")[4] for name in trained_names(model)} == {"q_proj", "v_proj"}


def test_alpha_scales_the_update(tuned: Callable[..., PreTrainedModel]) -> None:
    """Half the alpha and twice the update is the same."""
    models = [tuned(peft("lora", alpha=alpha)) for alpha in (8.0, 4.0, 4.0)]
    for model, factor in zip(models, (1.0, 2.0, 1.0), strict=True):
        disturb(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.mul_(factor)
    logits = [model(TOKENS).logits for model in models]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
    assert (logits[2] - logits[0]).abs().max() > 0.1


def test_virtual_tokens_start_at_a_text_or_at_drawn_words(
    tuned: Callable[..., PreTrainedModel],
) -> None:
    table = tuned(peft("none")).get_parameter("model.embed_tokens.weight")
    name = "model.virtual_tokens.sets.policy"
    text = tuned(peft("prompt_tuning", init_text="w7 w9")).get_parameter(name)
    assert torch.equal(text, table[[7, 9, 7]])
    drawn = [tuned(peft("prompt_tuning"), seed=seed).get_parameter(name) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ModelError, match=r"(?s)has no tokens.*peft.init_text"):
        tuned(peft("prompt_tuning", init_text=" "))


def test_ia3_on_an_architecture_that_nobody_has_described(
    make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    model = make_policy()
    model.config.__class__ = type("Unheard", (type(model.config),), {"model_type": "unheard_of"})
    with pytest.raises(ModelError, match=r"(?s)unheard_of model IA3 should scale is not known.*peft=lora"):
        tune(model, peft("ia3"), POLICY, words, seed=0)
    assert adapter_names(model) == []


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "top_layers"])
def test_another_architecture_than_llama_and_gpt2(kind: str, words: PreTrainedTokenizerFast) -> None:
    """One weight holds queries, keys and values, and there is a norm of the embeddings."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2)
    model: PreTrainedModel = BloomForCausalLM(config).eval()
    before = model(TOKENS).logits
    tune(model, peft(kind), POLICY, words, seed=0)
    torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-5, rtol=0)
    assert 0 < count(model) < sum(weight.numel() for weight in model.parameters())
    disturb(model)
    assert (model(TOKENS).logits - before).abs().max() > 1e-3


@pytest.fixture
def base(make_policy: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    return write_base(make_policy(), words, tmp_path / "base")


def opened(directory: Path) -> PreTrainedModel:
    return load_policy(ModelSource(str(directory)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_goes_on_with_the_adapter_it_comes_with(
    kind: str, base: Path, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sft = write_policy(base, peft(kind), words, tmp_path / "sft")
    model = opened(sft)
    before = model(TOKENS).logits
    assert not trained_names(model)
    tune(model, peft(kind), POLICY, words, seed=5)
    assert count(model) == TRAINED[kind]
    assert torch.equal(model(TOKENS).logits, before)
    assert active_adapter(model) == (None if kind == "top_layers" else POLICY)
    disturb(model, seed=4)
    (tmp_path / "ppo").mkdir()
    save_policy(model, words, tmp_path / "ppo", layers_of(peft(kind)))
    torch.testing.assert_close(opened(tmp_path / "ppo")(TOKENS).logits, model(TOKENS).logits, atol=1e-6, rtol=0)
    assert (model(TOKENS).logits - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", [*UPDATES_OF_WEIGHTS, "top_layers"])
def test_whole_training_goes_on_from_the_merged_model(
    kind: str, base: Path, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = opened(write_policy(base, peft(kind), words, tmp_path / "sft"))
    before = model(TOKENS).logits
    tune(model, peft("none"), POLICY, words, seed=0)
    assert count(model) == TRAINED["none"]
    torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-4, rtol=0)
    (tmp_path / "ppo").mkdir()
    save_policy(model, words, tmp_path / "ppo")
    assert (tmp_path / "ppo" / "model.safetensors").is_file()
    assert torch.equal(opened(tmp_path / "ppo")(TOKENS).logits, model(TOKENS).logits)


OTHERS: list[tuple[str, dict[str, object], str, dict[str, object], str]] = [
    ("lora", {}, "lora", {"rank": 8}, r"lora, rank 4, alpha 8, on .* asks for another \(lora, rank 8"),
    ("lora", {}, "lora", {"alpha": 16.0}, "alpha 16"),
    ("lora", {}, "lora", {"targets": ["q_proj"]}, r"rank 4, alpha 8, on q_proj\)"),
    ("lora", {}, "dora", {}, r"\(lora, rank 4.* asks for another \(dora, rank 4"),
    ("dora", {}, "ia3", {}, r"dora.*asks for another \(ia3\)"),
    ("ia3", {}, "prompt_tuning", {}, r"ia3.* \(prompt tuning, 3 virtual tokens\)"),
    ("prompt_tuning", {}, "prompt_tuning", {"virtual_tokens": 5}, "3 virtual tokens.*5 virtual tokens"),
    ("prompt_tuning", {}, "top_layers", {}, "prompt tuning, 3 virtual tokens.*1 top layers"),
    ("top_layers", {}, "top_layers", {"layers": 2}, "1 top layers.*2 top layers"),
    ("top_layers", {}, "lora", {}, "1 top layers.*an adapter"),
]


@pytest.mark.parametrize(("kind", "values", "then", "other", "what"), OTHERS)
def test_another_kind_is_refused(
    kind: str,
    values: dict[str, object],
    then: str,
    other: dict[str, object],
    what: str,
    base: Path,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = opened(write_policy(base, peft(kind, **values), words, tmp_path / "sft"))
    with pytest.raises(ArtifactError, match=f"(?s){what}.*rlhf export RUN_DIR --merge") as refused:
        tune(model, peft(then, **other), POLICY, words, seed=0)
    assert refused.value.where == "peft"


def test_whole_training_from_virtual_tokens_is_refused(
    base: Path, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = opened(write_policy(base, peft("prompt_tuning"), words, tmp_path / "sft"))
    with pytest.raises(ModelError, match="cannot be merged"):
        tune(model, peft("none"), POLICY, words, seed=0)


def test_the_learning_rate_is_multiplied_where_a_part_is_trained() -> None:
    assert learning_rate_factor(peft("none")) == 1.0
    assert learning_rate_factor(peft("lora", learning_rate_factor=5.0)) == 5.0
