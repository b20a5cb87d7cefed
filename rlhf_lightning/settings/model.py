"""The base language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.settings.marks import NO_EFFECT
from rlhf_lightning.settings.section import Count, Name, Section

DType = Literal["float32", "bfloat16", "float16"]


class LanguageModel(Section):
    """Fields of every model group."""

    dtype: DType
    gradient_checkpointing: Annotated[bool, NO_EFFECT]
    share_backbone: Literal["auto", True, False]


class CourtesyModel(LanguageModel):
    """The badly behaved tiny model of the embedded world."""

    kind: Literal["courtesy"]


class ScratchModel(LanguageModel):
    """Random weights behind a byte-level BPE trained on the data at hand."""

    kind: Literal["scratch"]
    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Count
    layers: Count
    heads: Count
    max_positions: Annotated[int, Field(ge=16)]

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchModel:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 * heads = {2 * self.heads}")
        return self


class HubModel(LanguageModel):
    """Any Transformers causal language model, by hub id or local directory."""

    kind: Literal["hub"]
    name_or_path: Name
    revision: Name | None
    trust_remote_code: bool
    chat_template: Name | None


ModelSettings = Annotated[CourtesyModel | ScratchModel | HubModel, Field(discriminator="kind")]
