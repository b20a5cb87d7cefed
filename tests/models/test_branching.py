"""The two parts of a model are together the model, whatever its architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from rlhf_lightning.errors import ModelError
from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.forward_pass import checkpoint_activations, position_arguments
from rlhf_lightning.models.loading import disable_dropout
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.sharing import Branch
from rlhf_lightning.models.top_layers import train_top_layers

MakeModel = Callable[..., PreTrainedModel]
Padded = Callable[..., tuple[Tensor, Tensor]]

ROWS = [([5, 9, 7], [12, 30, 8, 1]), ([11], [20, 1]), ([6, 6, 40, 33, 21], [17, 18, 19])]
TOKENS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    **TOKENS,
    "initializer_range": 0.2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "gpt2": GPT2Config(**TOKENS, n_embd=16, n_layer=4, n_head=2, n_positions=64, initializer_range=0.2),
    # Only its upper two blocks see a window: which block is which must not get lost.
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=2),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    # Scaled embeddings, windows in every second block, capped logits.
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=3, final_logit_softcapping=3.0),
    "gpt_neox": GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 2}),
    # Blocks that give tuples, a norm after the embeddings, no positions at all.
    "bloom": BloomConfig(**TOKENS, hidden_size=16, n_layer=4, n_head=2, initializer_range=0.2),
    # Blocks one floor further down.
    "opt": OPTConfig(
        **TOKENS, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=4, num_attention_heads=2
    ),
}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[request.param])
    for module in made.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias)  # a norm that is left out, or done twice, shall be seen
    return disable_dropout(made)


@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_the_parts_are_the_whole_bit_for_bit(model: PreTrainedModel, layers: int, padded: Padded) -> None:
    sequences, mask = padded(ROWS, 5, 4, 0)
    arguments = {"input_ids": sequences, **position_arguments(model, mask), "use_cache": False}
    branch = Branch.of(model, layers)
    states = branch.states(sequences, mask)
    whole, parts = model(**arguments).logits, branch.run_from(states)(**arguments).logits
    real = mask.bool()
    assert torch.equal(parts[real], whole[real])
    assert whole[real].std() > 0.1


@torch.no_grad()
def test_the_states_are_those_that_reach_the_first_trained_block(model: PreTrainedModel, padded: Padded) -> None:
    sequences, mask = padded(ROWS, 5, 4, 0)
    reaching: list[Tensor] = []
    blocks: Any = model.get_submodule(Branch.of(model, 1).path)
    hook = blocks[3].register_forward_pre_hook(
        lambda _, args, kwargs: reaching.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(input_ids=sequences, **position_arguments(model, mask), use_cache=False)
    hook.remove()
    states = Branch.of(model, 1).states(sequences, mask)
    assert states.shape == (3, 9, 16)
    assert torch.equal(states, reaching[0])


def calls(model: PreTrainedModel, path: str) -> list[int]:
    """Counts, from now on, how often each block runs."""
    counts = [0] * len(model.get_submodule(path))  # type: ignore[arg-type]

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    for number, block in enumerate(model.get_submodule(path).children()):
        block.register_forward_hook(count(number))
    return counts


def test_each_part_runs_its_own_blocks_only(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(num_hidden_layers=5)
    branch = Branch.of(policy, 2)
    sequences, mask = padded(ROWS, 5, 4, 0)
    counts = calls(policy, branch.path)
    states = branch.states(sequences, mask)
    assert counts == [1, 1, 1, 0, 0]
    branch.run_from(states)(input_ids=sequences, attention_mask=mask)
    assert counts == [1, 1, 1, 1, 1]


def test_no_weight_is_copied_and_the_model_stays_as_it_is(model: PreTrainedModel, padded: Padded) -> None:
    names = [name for name, _ in model.named_modules()]
    branch = Branch.of(model, 2)
    sequences, mask = padded(ROWS, 5, 4, 0)
    view = branch.run_from(branch.states(sequences, mask))
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in view.parameters()} <= own
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_upper_part_has_the_whole_models_gradients(
    model: PreTrainedModel, checkpointing: bool, padded: Padded
) -> None:
    train_top_layers(model, 2)
    twin = copy.deepcopy(model)
    branch = Branch.of(model, 2)
    if checkpointing:
        checkpoint_activations(model)
    sequences, mask = padded(ROWS, 5, 4, 0)
    outputs = ActorCritic(model, branch=branch)(sequences, mask, 4, 1.0, trunk_states=branch.states(sequences, mask))
    (outputs.logprobs * mask[:, 5:]).sum().backward()
    (ActorCritic(twin)(sequences, mask, 4, 1.0).logprobs * mask[:, 5:]).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    seen = 0
    for name, weight in twin.named_parameters():
        assert (gradients[name] is None) == (weight.grad is None) == (not weight.requires_grad)
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad, atol=1e-6, rtol=1e-5)
            seen += int(weight.grad.abs().max() > 1e-3)
    assert seen > 10


@torch.no_grad()
def test_policy_reference_and_critic_go_on_from_the_same_states(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(num_hidden_layers=3)
    train_top_layers(policy, 1)
    critic = SeparateCritic.from_policy(policy)
    nn.init.normal_(critic.head.linear.weight)
    branch = Branch.of(policy, 1)
    reference = FrozenReference.on_trunk_of(policy, branch)
    for block in (policy.get_submodule("model.layers.2"), critic.trunk.get_submodule("layers.2")):
        for weight in block.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    inputs = *padded(ROWS, 5, 4, 0), 4
    whole = ActorCritic(policy, critic)(*inputs, 0.7), reference.logits(*inputs)
    critic.branch = Branch.of(critic.trunk, 1)
    reusing = ActorCritic(policy, critic, branch)
    states = reusing.trunk_states(*inputs[:2])
    counts = calls(policy, branch.path)
    parts = reusing(*inputs, 0.7, trunk_states=states), reference.logits(*inputs, states)
    assert counts == [0, 0, 1]
    assert torch.equal(parts[0].logprobs, whole[0].logprobs)
    assert torch.equal(parts[0].values, whole[0].values)
    assert torch.equal(parts[1], whole[1])
    assert whole[0].values.std() > 0.1


def test_bfloat16_arithmetic(make_policy: MakeModel, padded: Padded) -> None:
    policy = make_policy(num_hidden_layers=3)
    branch = Branch.of(policy, 1)
    inputs = *padded(ROWS, 5, 4, 0), 4
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = branch.states(*inputs[:2])
        parts = ActorCritic(policy, branch=branch)(*inputs, 1.0, trunk_states=states).logprobs
        whole = ActorCritic(policy)(*inputs, 1.0).logprobs
    assert torch.equal(parts, whole)


def test_half_precision_weights(make_policy: MakeModel) -> None:
    Branch.of(make_policy(num_hidden_layers=3).to(torch.bfloat16), 2)  # type: ignore[arg-type]


class Crossing(nn.Module):
    """A block that also listens to what an earlier one said: more than its input decides what it gives."""

    def __init__(self, block: nn.Module, heard: list[Tensor]) -> None:
        super().__init__()
        self.block = block
        self.heard = heard

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        given: Tensor = self.block(hidden_states, **others)
        if self.heard:
            given = given + self.heard[0]
        return given


def test_a_model_that_is_more_than_a_chain_of_blocks_is_refused(make_policy: MakeModel) -> None:
    policy = make_policy(num_hidden_layers=3)
    policy._no_split_modules = {"Crossing"}
    blocks: Any = policy.base_model.layers
    heard: list[Tensor] = []
    for index in range(3):
        blocks[index] = Crossing(blocks[index], heard if index == 2 else [])
    policy.base_model.register_forward_pre_hook(lambda *_: heard.clear())
    blocks[0].register_forward_hook(lambda _, __, output: heard.append(output))
    with pytest.raises(ModelError, match=r"(?s)differ from the whole by.*peft.reuse_trunk=false"):
        Branch.of(policy, 2)


def test_a_model_whose_blocks_are_asked_for_more_than_their_output_is_refused(make_policy: MakeModel) -> None:
    policy = make_policy(num_hidden_layers=3)
    policy.base_model.register_forward_pre_hook(lambda model, _: [block.self_attn for block in model.layers] and None)
    with pytest.raises(ModelError, match=r"(?s)no attribute 'self_attn'.*peft.reuse_trunk=false"):
        Branch.of(policy, 2)
