"""A question as a request to a chat completions server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.feedback.judge_model import Question
from rlhf_lightning.settings.judge import OpenAiJudge

OPENING_TOKENS = 8
"""Tokens written where probabilities are read: an option may stand behind a bracket, or behind "The answer is"."""
TEXT_TOKENS = 16
"""Tokens written where the text is read: "The better reply is (B)." has 7."""
CONCLUDING_TOKENS = 32
"""Tokens that may follow on the reasoning."""
RIVALS, FEW_RIVALS = 20, 5
"""Likeliest tokens asked for: the most that OpenAI and vLLM give, and what is asked of a server that gives fewer."""


def chat_request(question: Question, settings: OpenAiJudge) -> dict[str, Any]:
    """The request that asks a question: greedy, but for reasoning, which is sampled anew for each vote.

    A server cannot be made to go on from the question's `opening`, so its last turn must ask for the option; one that
    begins with these words all the same is understood.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in question.turns]
    request = {"model": settings.model, "messages": messages}
    if question.reasons:
        longest = settings.max_reasoning_tokens + CONCLUDING_TOKENS
        return {**request, "temperature": 1.0, "seed": question.vote, "max_tokens": longest}
    if settings.logprobs:
        return {**request, "temperature": 0.0, "max_tokens": OPENING_TOKENS, "logprobs": True}
    return {**request, "temperature": 0.0, "max_tokens": TEXT_TOKENS}


def with_rivals(request: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The request as it is sent: it asks for so many of the likeliest tokens, where it asks for probabilities."""
    return {**request, "top_logprobs": count} if "logprobs" in request else dict(request)
