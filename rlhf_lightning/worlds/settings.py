"""Settings of the courtesy world's annotators and demonstrators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_lightning.sections import Finite, Fraction, NonNegative, Section


class AnnotatorSettings(Section):
    """The courtesy world's imperfect annotators: they rank by utility = gold + biases, with noise."""

    length_bias: Finite
    politeness_bias: Finite
    boilerplate_bias: Finite
    refusal_penalty: Finite
    flip_rate: Annotated[float, Field(ge=0.0, le=0.5)]


class DemonstratorSettings(Section):
    """Rates at which the courtesy world's demonstrators misbehave."""

    harm_rate: Fraction
    over_refusal_rate: Fraction
    off_topic_rate: Fraction
    rude_rate: Fraction
    polite_rate: Fraction
    untrue_rate: Fraction
    unknown_rate: Fraction
    filler_rate: NonNegative
    boilerplate_rate: Fraction
