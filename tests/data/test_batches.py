"""Padding, masks and devices; the padding token is the end-of-sequence token where that could do harm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import PromptBatch
from rlhf_lightning.data.batching import collate_demonstrations, collate_preferences, collate_prompts
from rlhf_lightning.data.encoding import EncodedDemonstration, EncodedPreference, EncodedPrompt, Encoder
from rlhf_lightning.records import Demonstration, Prompt

END = 9


def test_prompts_end_at_the_last_position() -> None:
    prompts = (EncodedPrompt(Prompt("a"), (1, 2, 3)), EncodedPrompt(Prompt("b"), (END,)))
    batch = collate_prompts(prompts, pad_id=END)
    assert batch.input_ids.tolist() == [[1, 2, 3], [END, END, END]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.prompts == (Prompt("a"), Prompt("b"))
    assert len(batch) == 2


def test_the_loss_is_on_the_response_and_its_end() -> None:
    demonstrations = [EncodedDemonstration((1, END), (3, 4, END)), EncodedDemonstration((5,), (END,))]
    batch = collate_demonstrations(demonstrations, pad_id=END, step_weight=17)
    assert batch.input_ids.tolist() == [[1, END, 3, 4, END], [5, END, END, END, END]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]
    assert batch.step_weight == 17
    assert len(batch) == 2


def test_both_sides_of_a_pair_are_whole_sequences() -> None:
    soft = EncodedPreference((1,), (2, END), (3, 4, END), 0.5, 0.75)
    pairs = [soft, EncodedPreference((5, 6), (END,), (7, END), 0.0)]
    batch = collate_preferences(pairs, pad_id=0, step_weight=2)
    assert batch.chosen_ids.tolist() == [[1, 2, END], [5, 6, END]]
    assert batch.chosen_mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.rejected_ids.tolist() == [[1, 3, 4, END], [5, 6, 7, END]]
    assert batch.rejected_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.margin.tolist() == [0.5, 0.0]
    assert batch.probability.tolist() == [0.75, 1.0]
    assert batch.margin.dtype == batch.probability.dtype == torch.float32


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], make_lengths: Callable[..., object]
) -> None:
    encoder = Encoder(make_tokenizer(pad=None), make_lengths())
    assert encoder.pad_id == encoder.eos_id
    encoded, _ = encoder.demonstrations([Demonstration(Prompt("abc"), "x"), Demonstration(Prompt("a"), "")])
    batch = collate_demonstrations(encoded, encoder.pad_id, step_weight=3)
    assert batch.input_ids[1, 1:].tolist() == [encoder.eos_id] * 4
    assert batch.loss_mask.sum(dim=1).tolist() == [2, 1]
    assert batch.attention_mask.sum(dim=1).tolist() == [5, 2]


def test_lightning_moves_a_batch_and_keeps_what_is_no_tensor() -> None:
    batch = collate_prompts([EncodedPrompt(Prompt("a"), (1, 2))], pad_id=0)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, PromptBatch)
    assert moved.input_ids.device.type == moved.attention_mask.device.type == "meta"
    assert moved.prompts == batch.prompts
    assert batch.input_ids.device.type == "cpu"
    step = collate_demonstrations([EncodedDemonstration((1,), (2,))], pad_id=0, step_weight=5)
    assert move_data_to_device([step], torch.device("meta"))[0].step_weight == 5
