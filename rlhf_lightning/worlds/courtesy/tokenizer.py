"""The word-level tokenizer of the courtesy world: one token a word, and a chat template.

`<pad>`, `<bos>`, `<eos>` and `<unk>` are distinct. The roles are ordinary words of the vocabulary, not special tokens:
a reply that contains one keeps it when decoded with `skip_special_tokens=True`, and so is seen to be malformed.
"""

from __future__ import annotations

import re
from typing import Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.worlds.courtesy import lexicon, traits

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
"""`<bos><user>prompt<assistant>reply<eos>`: only what an assistant says ends in `<eos>`."""


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
