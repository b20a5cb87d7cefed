"""Word-level tokenizer of the courtesy world, the tiny Llama that speaks its language badly, and their training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lightning.worlds.courtesy import lexicon, traits
from rlhf_lightning.worlds.courtesy.corpus import Document, documents

SPECIAL: Final = ("<pad>", "<bos>", "<eos>", "<unk>")
ROLES: Final = ("<system>", "<user>", "<assistant>")

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""`<bos><user>prompt<assistant>response<eos>`: only what an assistant says ends in `<eos>`."""


def vocabulary() -> tuple[str, ...]:
    """Every token, special ones and roles first, in a fixed order."""
    wordings = [
        *lexicon.HOW_TO_PROMPTS,
        *lexicon.FACT_PROMPTS,
        *lexicon.POLITE,
        *lexicon.RUDE,
        *lexicon.BOILERPLATE,
        *(wording for core in lexicon.CORES.values() for wording in core),
        *(trait.fault for trait in traits.TRAITS.values()),
        traits.FINE,
    ]
    words = [word for wording in wordings for word in re.sub(r"\{\w+\}", "", wording).split()]
    requests = ("judge", "critique", "revise", *traits.TRAITS, traits.YES, traits.NO)
    topics = (
        *lexicon.VERBS,
        *lexicon.OBJECTS,
        *lexicon.HARM_VERBS,
        *lexicon.VICTIMS,
        *lexicon.INANIMATE,
        *lexicon.ENTITIES,
        *lexicon.ATTRIBUTES,
        *lexicon.ALL_VALUES,
    )
    return tuple(dict.fromkeys((*SPECIAL, *ROLES, *requests, *words, *lexicon.FILLERS, *topics)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from the lexicon."""
    pad, bos, eos, unknown = SPECIAL
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary())}, unk_token=unknown))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        padding_side="left",
    )


IGNORED: Final = -100
"""The label of a token that the loss leaves out."""
MAX_POSITIONS: Final = 256
MAX_RESPONSE_TOKENS: Final = 32
BATCHES_PER_BUCKET: Final = 32
"""Documents of so many batches are sorted by length and cut into batches, so that little is padding."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Training plan of the base model: AdamW, linear warm-up, cosine decay to zero.

    Attributes:
        batch_size: documents a step.
    """

    seed: int
    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained base model of 0.9M parameters, initialized from torch's global generator."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=False,
            initializer_range=0.05,
            **tokens,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_RESPONSE_TOKENS, **tokens
    )
    return model


class Encoder:
    """Turns documents into token ids and labels, and those into right-padded batches.

    Under causal attention padding on the right changes nothing before it, so no attention mask is needed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._id_of = tokenizer.get_vocab()
        self._bos, self._eos, self._pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def encode(self, document: Document) -> tuple[list[int], list[int]]:
        """The ids of a document, as the chat template renders it, and its labels (`IGNORED` where not learned)."""
        ids, labels = [self._bos], [IGNORED]
        for index, turn in enumerate(document.turns):
            role = self._id_of[f"<{turn.role}>"]
            said = [self._id_of[word] for word in turn.content.split()]
            if turn.role == "assistant":
                said.append(self._eos)
            learned = index >= document.learn_from and turn.role == "assistant"
            ids += [role, *said]
            labels += [IGNORED, *(said if learned else [IGNORED] * len(said))]
        return ids, labels

    def collate(self, encoded: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """Ids and labels of a batch, (batch, time) each."""
        width = max(len(ids) for ids, _ in encoded)
        ids = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in encoded])
        return ids, labels


def training_batches(encoder: Encoder, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of (ids, labels), (batch, time) each, of documents of similar lengths."""
    rng = Random(seed)
    stream = documents(rng)
    while True:
        bucket = [encoder.encode(document) for document in islice(stream, batch_size * BATCHES_PER_BUCKET)]
        bucket.sort(key=lambda encoded: len(encoded[0]))
        batches = [bucket[start : start + batch_size] for start in range(0, len(bucket), batch_size)]
        rng.shuffle(batches)
        yield from map(encoder.collate, batches)


def _optimizer(model: LlamaForCausalLM, plan: TrainingPlan) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), foreach=True)


def train(
    tokenizer: PreTrainedTokenizerFast, plan: TrainingPlan, on_step: Callable[[float], None]
) -> tuple[LlamaForCausalLM, int]:
    """Trains a base model.

    Args:
        on_step: called with the loss (nats a learned token) after each step.

    Returns:
        The model, and the number of tokens it was trained on (padding apart).
    """
    torch.manual_seed(plan.seed)
    model = new_model(tokenizer).train()
    optimizer = _optimizer(model, plan)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=plan.warmup_steps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, plan.steps - plan.warmup_steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [plan.warmup_steps])
    tokens = 0
    for ids, labels in islice(training_batches(Encoder(tokenizer), plan.batch_size, plan.seed), plan.steps):
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        optimizer.step()
        schedule.step()
        tokens += int((ids != tokenizer.pad_token_id).sum())
        on_step(loss.item())
    return model.eval(), tokens
