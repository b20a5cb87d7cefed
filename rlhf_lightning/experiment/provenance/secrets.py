"""Redaction of secrets in text."""

from __future__ import annotations

import re

SECRET = re.compile(
    r"((?<![A-Za-z])(?:(?:api|access|secret|private)[_-]?key"
    # A tokenizer's tokens are no secrets: pad_token=... is common in code for language models.
    r"|(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token"
    r"|secret|password)[\"']?(?:=|:[ ]+(?=\S+$)))[^\s&]+",
    re.IGNORECASE | re.MULTILINE,
)
CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


def redact(text: str) -> str:
    """Text without the values of keys, tokens, secrets and passwords, and without credentials in a URL."""
    return CREDENTIALS.sub(r"\1***@", SECRET.sub(r"\1***", text))
