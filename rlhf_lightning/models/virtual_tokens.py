"""Prompt tuning: trained vectors in front of every text, independent of padding.

PEFT's own forward leaves positions to the model and puts the vectors in front of left padding, so that the distance
between them and a prompt depends on what else is in the batch. Here hooks on the trunk put them in front of what it
reads and take them out of what it gives, and positions count vectors and real tokens only: the model around the
trunk, its `generate()` and everything that calls them stay as they are. Without padding the function is PEFT's
(Lester, Al-Rfou and Constant 2021, arXiv:2104.08691).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf_lightning.errors import ArtifactError, ModelError

_MODULE = "virtual_tokens"


class VirtualTokens(nn.Module):
    """Named sets of vectors on one trunk, of which at most one is in front of what the trunk reads.

    A module of the trunk, so that device moves, copies and wrappers see its parameters.

    Attributes:
        sets: name -> (N, hidden) float32; a set is cast to the trunk's dtype where it is used.
        active_set: the set in front; None for none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sets = nn.ParameterDict()
        self.active_set: str | None = None
        self._in_front = 0

    def switch(self, name: str | None) -> None:
        """Put the set `name` in front; none where there is no set of that name."""
        self.active_set = name if name is not None and name in self.sets else None

    def longest(self) -> int:
        """The number of vectors in the longest set: so many positions fewer are left for tokens."""
        return max((len(vectors) for vectors in self.sets.values()), default=0)

    def put_in_front(
        self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of the trunk: embeds the tokens with the active set in front.

        In a cached step the set is in the cache already: only masks and positions are those of a longer sequence.

        Raises:
            ModelError: the cache was made for the tokens alone.
        """
        self._in_front = 0
        if self.active_set is None:
            return None
        vectors = self.sets[self.active_set]
        given = {**dict(zip(inspect.signature(trunk.forward).parameters, args, strict=False)), **kwargs}
        cache = given.get("past_key_values")
        if isinstance(cache, Cache) and cache.is_compileable:
            raise ModelError(
                "A cache of fixed length has no room for virtual tokens.",
                where="peft=prompt_tuning",
                fix="generate with a cache that grows, Transformers' default",
            )
        begins = not isinstance(cache, Cache) or cache.get_seq_length() == 0
        if begins:
            self._in_front = len(vectors)
            embeddings = _embeddings(trunk, given)
            front = vectors.to(embeddings.dtype).expand(len(embeddings), -1, -1)
            given |= {"input_ids": None, "inputs_embeds": torch.cat([front, embeddings], dim=1)}
        return (), given | _shifted(given, len(vectors), begins=begins)

    def drop_from_outputs(self, _trunk: nn.Module, _args: tuple[Any, ...], outputs: BaseModelOutput) -> BaseModelOutput:
        """Forward hook of the trunk: hidden states are those of the tokens alone."""
        if self._in_front:
            assert outputs.last_hidden_state is not None
            # A copy, since FSDP wants no views.
            outputs.last_hidden_state = outputs.last_hidden_state[:, self._in_front :].clone()
            if outputs.hidden_states is not None:
                outputs.hidden_states = tuple(layer[:, self._in_front :] for layer in outputs.hidden_states)
        return outputs


def attach_virtual_tokens(model: PreTrainedModel, name: str, vectors: Tensor) -> None:
    """Give the trunk of a model a set of virtual tokens, in front of all it reads from now on.

    The model's own parameters are left as they are, trainable or not.

    Args:
        model: a decoder, with a language-model head, a score at every position, or none.
        name: of the set, new on this trunk.
        vectors: (N, hidden), N >= 1, copied.

    Raises:
        ModelError: the model does not read from left to right.
        ArtifactError: the vectors are as wide as another model's embeddings.
    """
    _require_decoder(model)
    width = _embedding_weights(model).shape[1]
    if vectors.dim() != 2 or len(vectors) == 0 or vectors.shape[1] != width:
        raise ArtifactError(
            f"Virtual tokens of shape {tuple(vectors.shape)} do not fit a model whose embeddings are {width} wide.",
            where=model.config.name_or_path or type(model).__name__,
            fix="open them on the model that they were trained on",
        )
    attached = virtual_tokens(model)
    if attached is None:
        attached = _attach_to(model.base_model)
    if name in attached.sets:
        raise ValueError(f"the trunk has virtual tokens {name!r} already")
    attached.sets[name] = nn.Parameter(vectors.detach().to(model.device, torch.float32, copy=True))
    attached.active_set = name


def virtual_tokens(model: PreTrainedModel) -> VirtualTokens | None:
    """The virtual tokens on the trunk of a model; None if it has none."""
    attached = getattr(model.base_model, _MODULE, None)
    return attached if isinstance(attached, VirtualTokens) else None


def vectors_of_vocabulary(model: PreTrainedModel, count: int, seed: int) -> Tensor:
    """(count, hidden) float32 embeddings of tokens drawn at random: PEFT's SAMPLE_VOCAB, from a seed."""
    vocabulary = len(_embedding_weights(model))
    return _start(model, torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)))


def vectors_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> Tensor:
    """(count, hidden) float32 embeddings of a text's tokens, repeated or cut to `count`: PEFT's TEXT.

    Raises:
        ModelError: the text has no tokens.
    """
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise ModelError(f"The text {text!r} has no tokens.", where="peft.init_text", fix="set a longer text, or null")
    return _start(model, torch.tensor((ids * (count // len(ids) + 1))[:count]))


def _start(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return _embedded(model, ids.to(model.device)).float()


def _embedded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    vectors: Tensor = model.get_input_embeddings()(ids)
    return vectors


def _embedding_weights(model: PreTrainedModel) -> Tensor:
    weights = model.get_input_embeddings().weight
    assert isinstance(weights, Tensor)
    return weights


def _require_decoder(model: PreTrainedModel) -> None:
    config = model.config
    takes = inspect.signature(model.base_model.forward).parameters
    reads_both_ways = config.is_encoder_decoder or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if reads_both_ways or "inputs_embeds" not in takes or "past_key_values" not in takes:
        raise ModelError(
            f"Virtual tokens need a decoder, which reads from left to right; {type(model).__name__} is none.",
            where="peft=prompt_tuning",
            fix="choose another model, or peft=lora",
        )


def _attach_to(trunk: nn.Module) -> VirtualTokens:
    attached = VirtualTokens()
    trunk.register_module(_MODULE, attached)
    trunk.register_forward_pre_hook(attached.put_in_front, with_kwargs=True)
    trunk.register_forward_hook(attached.drop_from_outputs)
    return attached


def _embeddings(trunk: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """(batch, time, hidden) of the tokens that a trunk was given, as ids or embedded already."""
    assert isinstance(trunk, PreTrainedModel)
    embedded: Tensor | None = given.get("inputs_embeds")
    return _embedded(trunk, given["input_ids"]) if embedded is None else embedded


def _shifted(given: Mapping[str, Any], count: int, *, begins: bool) -> dict[str, Tensor]:
    """Mask and positions, where given, for a sequence with `count` vectors in front."""
    shifted = {}
    mask = given.get("attention_mask")
    if mask is not None:
        shifted["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    positions = given.get("position_ids")
    if positions is not None:
        shifted["position_ids"] = positions + count
        if begins:
            front = torch.arange(count, device=positions.device).expand(*positions.shape[:-1], -1)
            shifted["position_ids"] = torch.cat([front, positions + count], dim=-1)
    return shifted
