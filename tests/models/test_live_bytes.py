"""Counting bytes on tensors without data."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_lightning.models.footprint import Footprint, deeper
from rlhf_lightning.models.live_bytes import LiveBytes, shapes_only, storage_bytes, without_data
from rlhf_lightning.models.peak_memory import PeakMemory, available, baseline

CPU = torch.device("cpu")
MIB = 2**20


def test_what_is_in_use_at_once_is_counted_and_what_is_let_go_is_not() -> None:
    with without_data([], CPU), LiveBytes() as memory:
        one = torch.zeros(1000)  # 4,000 bytes
        two = one + 1
        assert (memory.live, memory.peak) == (8_000, 8_000)
        del one
        view = two.view(10, 100)  # no storage of its own
        assert (memory.live, memory.peak) == (4_000, 8_000)
        memory.begin()
        del two, view
        assert (memory.live, memory.peak) == (0, 4_000)


def test_the_backward_pass_holds_what_the_forward_pass_saved() -> None:
    with shapes_only():
        layer = nn.Linear(100, 100, bias=False)
    with without_data([layer], CPU), LiveBytes(layer.parameters()) as memory:
        inputs = torch.zeros(50, 100)  # 20,000 bytes, saved for the gradient of the weight
        outputs = layer(inputs).exp()  # 20,000 bytes, saved for its own gradient
        del inputs
        assert memory.live == 40_000
        outputs.sum().backward()
        del outputs
        assert memory.live == 40_000, "the gradient of 100 x 100 weights"


def test_what_a_kernel_takes_for_itself_is_counted_where_it_is_large() -> None:
    with without_data([], CPU), LiveBytes() as memory:
        logits = torch.zeros(10, 1000)  # 40,000 bytes
        torch.logsumexp(logits, dim=-1)
        assert memory.peak == 2 * 40_000 + 10 * 4


def test_shapes_alone_share_what_the_models_share_and_leave_chance_alone() -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with shapes_only():
        model = AutoModelForCausalLM.from_config(config)
        copied = copy.deepcopy(model, {id(model.lm_head.weight): model.lm_head.weight})
    with without_data([model, copied], CPU):
        weights = storage_bytes([*model.parameters(), *copied.parameters()])
        model(input_ids=torch.zeros(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5, dtype=torch.long))
        assert model.lm_head.weight is copied.lm_head.weight
    alone = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert weights == 2 * alone - 100 * 16 * 4
    assert torch.rand(1) == expected


def test_more_blocks_are_a_straight_line() -> None:
    def footprint(blocks: int) -> Footprint:
        phases = {"generate": 5 * blocks, "update": 100 + 20 * blocks}
        return Footprint({"policy": 1000 + 10 * blocks}, 3 * blocks, 12 * blocks, 24 * blocks, phases)

    assert deeper(footprint(6), footprint(8), depths=(6, 8), depth=32) == footprint(32)
    assert footprint(32).largest_phase == "update"
    assert footprint(32).peak == 1000 + 320 + 100 + 640


def test_the_peak_of_the_process_is_measured() -> None:
    before = baseline(CPU)
    peak = PeakMemory(CPU)
    held = torch.ones(50 * MIB // 4)
    del held
    assert before + 40 * MIB < peak.bytes < before + 150 * MIB
    left = available(CPU)
    assert left is not None
    assert left > 10 * MIB
