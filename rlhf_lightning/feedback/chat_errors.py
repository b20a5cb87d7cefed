"""Classification of a chat completions server's errors, and their fixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.settings.judge import OpenAiJudge

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

BAD_REQUEST = (400, 422)
"""HTTP status codes of a request that a server understood and refused."""

LONGEST_WORDS = 300
"""Maximum number of characters shown of a server's message."""

OF_THE_QUESTION = ("content_filter", "content_policy_violation", "context_length_exceeded", "maximum context length")
"""Error codes and messages of a server that rejects the text of a question."""


def words_of(error: APIError) -> str:
    """The server's error message, in one line."""
    body = error.body
    fields = body if isinstance(body, Mapping) else {}
    said = fields.get("message") or fields.get("detail") or body or error.message
    text = " ".join(str(said).split())
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}..."


def is_about_the_question(error: APIError, has_worked: bool) -> bool:
    """True if a request failed because of its question's text, so that other questions may succeed.

    Args:
        has_worked: requests with the same parameters have been answered.
    """
    import openai  # here, since it is an extra

    if not isinstance(error, openai.APIStatusError) or error.status_code not in BAD_REQUEST:
        return False
    return has_worked or any(sign in f"{error.code} {words_of(error)}" for sign in OF_THE_QUESTION)


def explained(error: APIError, settings: OpenAiJudge, api_key: str | None) -> JudgeError:
    """The error that a user reads, after the last try; a server that repeats the key is not quoted with it."""
    import openai  # here, since it is an extra

    tries = f"{settings.max_retries + 1} tries" if settings.max_retries else "one try"
    if isinstance(error, openai.APITimeoutError):
        return JudgeError(
            f"The judge's server did not answer within {settings.timeout:g} seconds, in {tries}.",
            where=f"judge.base_url={settings.base_url}",
            fix="raise judge.timeout, or lower judge.concurrency; answers so far are in judge.cache",
        )
    if not isinstance(error, openai.APIStatusError):
        return JudgeError(
            f"The judge's server cannot be reached, in {tries}: {error.__cause__ or error.message}",
            where=f"judge.base_url={settings.base_url}",
            fix="start the server, or mend judge.base_url; more judge.max_retries wait longer for one that restarts",
        )
    said = words_of(error)
    if api_key:
        said = said.replace(api_key, "<redacted>")
    return _of_status(error, settings, tries, said)


def _of_status(error: APIStatusError, settings: OpenAiJudge, tries: str, said: str) -> JudgeError:
    status, server = error.status_code, f"judge.base_url={settings.base_url}"
    if status in (401, 403):
        return JudgeError(
            f"The judge's server does not let us in ({status}): {said}",
            where=f"{server}, judge.api_key_env={settings.api_key_env or 'null'}",
            fix=f"export {settings.api_key_env} with a valid key"
            if settings.api_key_env
            else "set judge.api_key_env=NAME, and export NAME with the key",
        )
    if status == 404:
        return JudgeError(
            f"The judge's server knows no such model or address (404): {said}",
            where=f"judge.model={settings.model}, {server}",
            fix="name the model as the server does (it lists them at /models); the address usually ends in /v1",
        )
    if status == 429:
        return JudgeError(
            f"The judge's server still turns requests away after {tries} (429): {said}",
            where=server,
            fix="set judge.requests_per_minute to what it allows, or lower judge.concurrency; answers so far are in "
            "judge.cache",
        )
    if status in BAD_REQUEST:
        return JudgeError(
            f"The judge's server does not take the request ({status}): {said}",
            where=f"judge.model={settings.model}, {server}",
            fix="set judge.logprobs=false"
            if settings.logprobs and "logprobs" in said
            else "check judge.model, and what the server says",
        )
    return JudgeError(
        f"The judge's server fails, in {tries} ({status}): {said}", where=server, fix="look at the server's log"
    )
