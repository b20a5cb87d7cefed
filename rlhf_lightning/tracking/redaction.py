"""Keeping secrets out of what leaves the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"

_SECRET_WORDS = frozenset(
    ("token", "key", "apikey", "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials")
)
_WORDS = re.compile(r"[A-Za-z][a-z0-9]*|[A-Z]+(?![a-z])")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def redact(value: Any, key: str = "") -> Any:
    """A copy of a plain container without secrets.

    A text or list is a secret where a word of its key says so (`api_key`, `hfToken`, `password`, but not
    `max_new_tokens`); a user name or password inside a URL is one anywhere. Numbers, booleans and nulls are kept.
    """
    if isinstance(value, Mapping):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    return REDACTED if value and _is_secret(key) else _URL_CREDENTIALS.sub(REDACTED, value)


def redact_override(override: str) -> str:
    """The same for a command-line override, `key=value`."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{redact(value, key)}"


def _is_secret(key: str) -> bool:
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(key.rpartition(".")[2]))
