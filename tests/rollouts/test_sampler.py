"""What is sampled is the whole distribution, and a response ends where it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import ModelError
from rlhf_lightning.models.actor_critic import response_logits
from rlhf_lightning.objectives.logprobs import token_logprobs
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import Sampler, own_generation_config, response_lengths, stop_tokens

MakeModel = Callable[..., PreTrainedModel]
MakeWords = Callable[..., PreTrainedTokenizerFast]

EOS = 1
SHORT, LONG = (5, 9), (30, 8, 44, 23, 17, 6)


def prompts(*rows: Sequence[int]) -> list[EncodedPrompt]:
    return [EncodedPrompt(Prompt(" ".join(f"w{token}" for token in row)), tuple(row)) for row in rows]


def test_a_response_ends_with_its_first_stop_token() -> None:
    responses = torch.tensor([[7, 1, 8, 1], [1, 9, 9, 9], [7, 8, 9, 1], [7, 8, 9, 9]])
    lengths, finished = response_lengths(responses, [1])
    assert lengths.tolist() == [2, 1, 4, 4]
    assert finished.tolist() == [True, True, True, False]


def test_any_of_several_stop_tokens_ends_a_response() -> None:
    lengths, finished = response_lengths(torch.tensor([[7, 33, 1], [1, 33, 7], [7, 8, 33], [7, 8, 9]]), [1, 33])
    assert lengths.tolist() == [2, 1, 3, 3]
    assert finished.tolist() == [True, True, True, False]


def test_the_stop_tokens_are_the_tokenizers_and_the_models(
    make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    policy = make_policy()
    for configured, expected in [(None, (1,)), (1, (1,)), (33, (1, 33)), ([40, 1, 33], (1, 40, 33))]:
        policy.generation_config = GenerationConfig(eos_token_id=configured)
        assert stop_tokens(policy, words) == expected
    policy.generation_config = None  # type: ignore[assignment]
    assert stop_tokens(policy, words) == (1,)


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_samples_masks_and_completions_describe_the_same_responses(
    kind: str, pad: str, make_policy: MakeModel, make_words: MakeWords
) -> None:
    policy, tokenizer = make_policy(kind), make_words(pad=pad)
    policy.generation_config = GenerationConfig(eos_token_id=list(range(1, 9)))
    sampler = Sampler(policy, tokenizer, temperature=1.0, max_new_tokens=6, seed=0)
    samples = sampler.sample(prompts(*[SHORT, LONG] * 20), range(40))
    finished = 0
    for row, response in enumerate(samples.responses):
        prompt = SHORT if row % 2 == 0 else LONG
        length = int(samples.response_mask[row].sum())
        assert response.prompt_ids == prompt
        # Left-padded prompt, response from the same column on, right padding.
        assert samples.sequences[row, 6 - len(prompt) : 6 + length].tolist() == [*prompt, *response.response_ids]
        assert samples.attention_mask[row].nonzero()[:, 0].tolist() == list(range(6 - len(prompt), 6 + length))
        assert samples.response_mask[row, :length].all()
        assert (samples.sequences[row, 6 + length :] == tokenizer.pad_token_id).all()
        # The stop token is the response's last, and there is none before it.
        stops = [step for step, token in enumerate(response.response_ids) if 1 <= token < 9]
        assert stops == ([length - 1] if response.finished else [])
        assert response.finished or length == 6
        assert response.text == tokenizer.decode(list(response.response_ids), skip_special_tokens=True)
        finished += response.finished
    assert 5 < finished < 40, "both kinds of responses have to be among them"


def test_a_models_own_generation_config_is_set_aside_and_restored(
    make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    # Its own config would make every response the same; sampled freely, 64 first tokens are of many kinds.
    policy = make_policy(initializer_range=0.02)
    own = GenerationConfig(do_sample=False, top_k=1, repetition_penalty=50.0, max_new_tokens=1, min_new_tokens=4)
    policy.generation_config = own
    sampler = Sampler(policy, words, temperature=1.0, max_new_tokens=3, seed=0)
    samples = sampler.sample(prompts(*[SHORT] * 64), range(64))
    assert len({response.response_ids[0] for response in samples.responses}) > 20
    assert samples.response_mask.shape[1] == 3
    assert policy.generation_config is own
    assert (own.top_k, own.repetition_penalty, own.do_sample) == (1, 50.0, False)


def test_the_generation_config_is_restored_after_an_error(make_policy: MakeModel) -> None:
    policy = make_policy()
    own = policy.generation_config

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), own_generation_config(policy, GenerationConfig()):
        fail()
    assert policy.generation_config is own


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic, tokens expected less than five times thrown together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sampled_frequencies_are_the_softmax_at_the_temperature(
    kind: str, make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    # 80 tokens of similar probability, more than the 50 that Transformers keeps unless it is told otherwise.
    policy, temperature, draws = make_policy(kind, vocab_size=80), 1.5, 6000
    with torch.no_grad():
        weight: Any = policy.get_output_embeddings().weight
        weight.mul_(2.0)
    sampler = Sampler(policy, words, temperature=temperature, max_new_tokens=1, seed=0)
    tokens = sampler.sample(prompts(*[SHORT, LONG] * draws), range(2 * draws)).sequences[:, -1]
    for prompt, drawn in ((SHORT, tokens[0::2]), (LONG, tokens[1::2])):
        logits = policy(torch.tensor([prompt])).logits[0, -1].detach()
        counts = torch.bincount(drawn, minlength=80).float()
        # 79 degrees of freedom at most: a fair sample exceeds 130 less than once in 3000.
        assert chi_square(counts, torch.softmax(logits / temperature, dim=-1)) < 130
        # The test can tell: neither temperature 1, nor top-k 50, nor top-p 0.95 would pass it.
        assert chi_square(counts, torch.softmax(logits, dim=-1)) > 200
        top = (logits / temperature).masked_fill(logits < logits.topk(50).values[-1], -20.0)
        assert chi_square(counts, torch.softmax(top, dim=-1)) > 200
        kept = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
        nucleus = torch.zeros(80).scatter(0, kept.indices, kept.values * (kept.values.cumsum(0) < 0.95)) + 1e-6
        assert chi_square(counts, nucleus / nucleus.sum()) > 200


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_recorded_logprobs_are_those_that_a_forward_gives(
    kind: str, make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    policy = make_policy(kind)
    sampler = Sampler(policy, words, temperature=0.7, max_new_tokens=5, seed=0)
    samples = sampler.sample(prompts(*[SHORT, LONG] * 8), range(16))
    logits, _ = response_logits(policy, samples.sequences, samples.attention_mask, samples.response_mask.shape[1])
    difference = (token_logprobs(logits, samples.response_ids, 0.7) - samples.logprobs)[samples.response_mask]
    assert difference.abs().max() < 1e-5
    assert difference.mean().abs() < 1e-6
    assert samples.logprobs[samples.response_mask].std() > 0.1
    assert not samples.logprobs[~samples.response_mask].any()


def test_chunks_hold_at_most_so_many_prompts_and_keep_their_order(
    make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    sampler = Sampler(make_policy(), words, temperature=1.0, max_new_tokens=2, seed=0)
    chunks = list(sampler.sample_in_chunks(prompts(*([token] for token in range(3, 10))), range(7), 3))
    assert [len(chunk.responses) for chunk in chunks] == [3, 3, 1]
    assert [done.prompt_ids for chunk in chunks for done in chunk.responses] == [(token,) for token in range(3, 10)]


def test_the_seed_decides_what_is_sampled(make_policy: MakeModel, words: PreTrainedTokenizerFast) -> None:
    drawn = []
    for seed in (1, 1, 2):
        sampler = Sampler(make_policy(), words, temperature=1.0, max_new_tokens=4, seed=seed)
        drawn.append(sampler.sample(prompts(SHORT, LONG), range(2)).responses)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_draw_is_the_same_in_any_company_order_and_state_of_the_generator(
    kind: str, make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    policy = make_policy(kind)
    policy.generation_config.eos_token_id = list(range(40, 50))
    sampler = Sampler(policy, words, temperature=1.3, max_new_tokens=6, seed=3)
    asked = prompts(*[SHORT, LONG, (30,), (8, 8, 12)] * 6)
    together = sampler.sample(asked, range(100, 124)).responses
    assert len({len(done.response_ids) for done in together}) > 2
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    for size in (1, 5, 24):
        chunks = sampler.sample_in_chunks(asked, range(100, 124), size)
        assert tuple(done for chunk in chunks for done in chunk.responses) == together
    backwards = sampler.sample(asked[::-1], range(123, 99, -1)).responses
    assert backwards[::-1] == together
    assert torch.equal(torch.get_rng_state(), state), "the global generator has no part in it"


def test_draws_of_other_numbers_are_other_responses(make_policy: MakeModel, words: PreTrainedTokenizerFast) -> None:
    sampler = Sampler(make_policy(initializer_range=0.02), words, temperature=1.0, max_new_tokens=8, seed=0)
    first, second = (sampler.sample(prompts(*[SHORT] * 20), range(start, start + 20)) for start in (0, 20))
    responses = {done.response_ids for samples in (first, second) for done in samples.responses}
    assert len(responses) == 40
    # A negative number is a draw as well: reference samples have them.
    negative = sampler.sample(prompts(*[SHORT] * 20), range(-20, 0))
    assert not responses & {done.response_ids for done in negative.responses}


def test_a_prompt_that_leaves_no_room_is_one_clear_error(
    make_policy: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    sampler = Sampler(make_policy(), words, temperature=1.0, max_new_tokens=10, seed=0)
    sampler.sample(prompts([5] * 54), [0])
    with pytest.raises(ModelError, match=r"up to 65 tokens, and the model reads 64") as raised:
        sampler.sample(prompts([5] * 55), [0])
    assert "rollout.max_new_tokens" in str(raised.value.where)
