"""Redaction of secrets from data that leaves the machine, and from text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Pattern of an environment variable's name, which tells it from an API key given in its place."""

_SECRET_WORDS = frozenset(
    ("token", "key", "apikey", "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials")
)
_WORDS = re.compile(r"[A-Za-z][a-z0-9]*|[A-Z]+(?![a-z])")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_URL_QUERY = re.compile(r"([?&]([\w.-]+)=)[^&#\s]+")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?|true|false|null", re.IGNORECASE)
_INNER_KEYS = re.compile(r"([\w.-]+)['\"]?\s*:")


def redact(value: Any, key: str = "") -> Any:
    """A copy of a plain container without secrets.

    A text or list is a secret if a word of its key marks it (`api_key`, `hfToken`, `password`, but not
    `max_new_tokens`, nor `api_key_env` where it names an environment variable); a user name or password inside a URL,
    or a key in its query, is one anywhere. Numbers, booleans and nulls are kept.
    """
    if isinstance(value, Mapping):
        return {name: redact(inner, key if is_secret(key) else str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if value and is_secret(key) and not (key.endswith("_env") and VARIABLE.fullmatch(value)):
        return REDACTED
    return _URL_QUERY.sub(_without_secret, _URL_CREDENTIALS.sub(REDACTED, value))


def redact_override(override: str) -> str:
    """The same for a command-line override, `key=value`; a mapping (`key={api_key: ...}`) goes as a whole."""
    key, equals, value = override.partition("=")
    if _NUMBER.fullmatch(value):
        return override
    if "{" in value and any(map(is_secret, _INNER_KEYS.findall(value))):
        return f"{key}{equals}{REDACTED}"
    return f"{key}{equals}{redact(value, key)}"


def is_secret(key: str) -> bool:
    """True if a key's last name marks its value as secret."""
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(key.rpartition(".")[2]))


def _without_secret(query: re.Match[str]) -> str:
    return f"{query[1]}{REDACTED}" if is_secret(query[2]) else query[0]


SECRET = re.compile(
    r"((?<![A-Za-z])(?:(?:api|access|secret|private)[_-]?key"
    # A tokenizer's tokens are no secrets: pad_token=... is common in code for language models.
    r"|(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token"
    r"|secret|password)[\"']?(?:=|:[ ]+(?=\S+$)))[^\s&]+",
    re.IGNORECASE | re.MULTILINE,
)
CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


def redact_text(text: str) -> str:
    """Text without the values of keys, tokens, secrets and passwords, and without credentials in a URL."""
    return CREDENTIALS.sub(r"\1***@", SECRET.sub(r"\1***", text))
