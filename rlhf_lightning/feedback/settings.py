"""The judge that compares two responses under the constitution, and how its answers become labels."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rlhf_lightning.sections import NO_EFFECT, Count, ModelRef, Name, NonNegative, Positive, Section, StageRef

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class JudgeSection(Section):
    """Fields of all judges.

    Attributes:
        mode: `pairwise`: which of the two? `pointwise`: a yes or no to each; P(A) = sigmoid((l_A - l_B) / temperature).
        principles: `all`: a label averages over all principles that apply, by weight. `one`: it goes by one of them,
            drawn as the constitution says.
        phrasing: `english`, or the courtesy world's own words (`world`); `auto`: the world's where the data is its.
        fewshots: examples before the question; `auto`: for models without a chat template.
        swap: ask in both orders and average the probabilities (pairwise).
        label: `soft`: the probability. `hard`: 1 for the likelier response.
        clamp: soft labels are kept within these bounds; None: off.
        abstain_margin: no label where the probability is nearer to one half than this.
        abstain_on_disagreement: no label where the two orders name different responses (pairwise, swap).
        min_option_mass: an answer counts only where its options have this much probability together.
        temperature: divides the log-odds (pointwise).
        cot: the judge reasons before it answers.
        votes: answers, each with reasoning of its own, that are averaged (cot).
        max_reasoning_tokens: after which reasoning is cut off (cot).
    """

    mode: Literal["pairwise", "pointwise"]
    principles: Literal["all", "one"]
    phrasing: Literal["auto", "english", "world"]
    fewshots: Literal["auto", "always", "never"]
    swap: bool
    label: Literal["soft", "hard"]
    clamp: Annotated[list[Probability], Field(min_length=2, max_length=2)] | None
    abstain_margin: Annotated[float, Field(ge=0.0, lt=0.5)]
    abstain_on_disagreement: bool
    min_option_mass: Probability
    temperature: Positive
    cot: bool
    votes: Count
    max_reasoning_tokens: Count

    @model_validator(mode="after")
    def _parts_agree(self) -> JudgeSection:
        if self.clamp is not None and not self.clamp[0] <= 0.5 <= self.clamp[1]:
            raise ValueError(f"clamp {self.clamp} must hold 0.5, as [0.4, 0.6] does")
        if self.votes > 1 and not self.cot:
            raise ValueError("votes differ only by their reasoning: set cot=true, or votes=1")
        if self.mode == "pointwise" and self.abstain_on_disagreement:
            raise ValueError("abstain_on_disagreement compares two orders, and mode=pointwise has none")
        if self.abstain_on_disagreement and not self.swap:
            raise ValueError("abstain_on_disagreement compares two orders: set swap=true")
        return self


class LocalJudge(JudgeSection):
    """A causal LM in this process.

    Attributes:
        batch_size: questions a forward pass; does not change the answers.
    """

    batch_size: Annotated[Count, NO_EFFECT]


class SelfJudge(LocalJudge):
    """The policy's own start model (or any stage, directory or hub id)."""

    kind: Literal["self"]
    model_from: StageRef


class HubJudge(LocalJudge):
    """Any Transformers causal LM."""

    kind: Literal["hub"]
    name_or_path: ModelRef
    revision: Name | None
    dtype: Literal["float32", "bfloat16", "float16"]
    trust_remote_code: bool
    chat_template: Name | None


class OpenAiJudge(JudgeSection):
    """Any server that speaks OpenAI's chat completions API. The key comes from the environment alone.

    Attributes:
        api_key_env: the environment variable that holds the key; None: the server wants none.
        logprobs: read the options' probabilities; else, and always after reasoning, the answer's text, which is a hard
            label.
        concurrency: requests at once.
        requests_per_minute: limit, not counting retries; None: no limit.
        timeout: seconds a request may take.
        max_retries: of a request after a transient failure, with exponential back-off.
        cache: SQLite file of answers by the request's hash; None: off.
        price_per_million_input, price_per_million_output: in any currency, for the cost in the figures.
    """

    kind: Literal["openai"]
    base_url: Name
    model: Name
    api_key_env: Annotated[Name | None, NO_EFFECT]
    logprobs: bool
    concurrency: Annotated[Count, NO_EFFECT]
    requests_per_minute: Annotated[Count | None, NO_EFFECT]
    timeout: Annotated[Positive, NO_EFFECT]
    max_retries: Annotated[int, Field(ge=0), NO_EFFECT]
    cache: Annotated[Name | None, NO_EFFECT]
    price_per_million_input: Annotated[NonNegative, NO_EFFECT]
    price_per_million_output: Annotated[NonNegative, NO_EFFECT]

    @model_validator(mode="after")
    def _holds_no_secret(self) -> OpenAiJudge:
        """Rejects API keys in the config. Messages quote no values: a misplaced value may be a key."""
        if self.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env is the name of an environment variable in capitals, such as OPENAI_API_KEY; the key "
                "itself never stands in a config"
            )
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("base_url must be an address such as http://localhost:8000/v1")
        if "@" in address.netloc or address.query or address.fragment:
            raise ValueError(
                "base_url must hold no user, password or query: a key is read from the environment (api_key_env)"
            )
        return self


JudgeSettings = Annotated[SelfJudge | HubJudge | OpenAiJudge, Field(discriminator="kind")]
