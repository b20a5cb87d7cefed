"""Placeholders in a principle's texts: `{prompt}` and `{reply}`, or of two replies `{reply_a}` and `{reply_b}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

ABOUT_ONE = ("prompt", "reply")
ABOUT_TWO = ("prompt", "reply_a", "reply_b")

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "critique_request": ABOUT_ONE,
    "revision_request": ABOUT_ONE,
    "preference_question": ABOUT_TWO,
    "pointwise_question": ABOUT_ONE,
}
"""By the text they stand in."""

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A name in braces; any other brace is an ordinary character."""


def unknown_placeholders(field: str, text: str) -> list[str]:
    """Names in braces that nothing would be put in place of."""
    return [name for name in dict.fromkeys(PLACEHOLDER.findall(text)) if name not in ALLOWED[field]]


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders filled in; what is filled in may itself hold braces."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)
