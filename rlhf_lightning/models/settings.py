"""Settings of the base language model and of its trained part: all weights, or a small part beside frozen weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf_lightning.sections import NO_EFFECT, Count, Name, Positive, Section

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


class NoPeft(Section):
    """All weights are trained."""

    kind: Literal["none"]


class PartlyTrained(Section):
    """Fields of every method that trains only a part, which needs another learning rate than a whole model."""

    learning_rate_factor: Positive


class Lora(PartlyTrained):
    """Low-rank updates of linear layers (arXiv 2106.09685); `dora` learns their magnitudes apart (arXiv 2402.09353)."""

    kind: Literal["lora", "dora"]
    rank: Count
    alpha: Positive
    targets: Annotated[list[Name], Field(min_length=1)] | None


class QLora(PartlyTrained):
    """LoRA on a base in 4 bits (arXiv 2305.14314); needs CUDA and bitsandbytes."""

    kind: Literal["qlora"]
    rank: Count
    alpha: Positive
    targets: Annotated[list[Name], Field(min_length=1)] | None
    quantization: Literal["nf4", "fp4"]
    double_quantization: bool


class Ia3(PartlyTrained):
    """Learned scales of keys, values and feed-forward activations (arXiv 2205.05638)."""

    kind: Literal["ia3"]


class PromptTuning(PartlyTrained):
    """Learned vectors in front of every sequence (arXiv 2104.08691)."""

    kind: Literal["prompt_tuning"]
    virtual_tokens: Count
    init_text: Name | None


class TopLayers(PartlyTrained):
    """The last blocks and the final norm; what lies below them is frozen, and computed once a rollout."""

    kind: Literal["top_layers"]
    layers: Count
    reuse_trunk: bool


PeftSettings = Annotated[NoPeft | Lora | QLora | Ia3 | PromptTuning | TopLayers, Field(discriminator="kind")]


class ReferenceSettings(Section):
    """Kind of PPO's frozen reference: on the policy's weights, or a copy."""

    kind: Literal["auto", "adapter_off", "shared_trunk", "frozen_copy"]


def learning_rate_factor(peft: PeftSettings) -> float:
    """Factor on the learning rates of the stages."""
    return 1.0 if isinstance(peft, NoPeft) else peft.learning_rate_factor
