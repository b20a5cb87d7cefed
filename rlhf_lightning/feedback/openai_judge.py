"""A judge behind any server that speaks OpenAI's chat completions API."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.feedback.chat_api import (
    BAD_REQUEST,
    FEWER_TOP_LOGPROBS,
    RIVALS,
    ChatResponse,
    RequestRate,
    chat_request,
    error_message,
    explained,
    is_about_question,
    mass_in_probabilities,
    mass_in_reasoning,
    mass_in_text,
    read_response,
    with_top_logprobs,
)
from rlhf_lightning.feedback.judge_model import Answer, AnswerCache, Question, request_key
from rlhf_lightning.feedback.settings import OpenAiJudge

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

READING = 1
"""Version of the rules that turn responses into masses. Increase it with every change, to invalidate cached answers."""

CONNECT_SECONDS = 10.0
"""Timeout of a connection, in seconds; a request may take longer."""
MALFORMED_TRIES = 3
"""Times a question is asked whose answers are no chat completions."""
MALFORMED_PAUSE = 0.5
"""Seconds before the second attempt; doubles with each attempt."""
MALFORMED_AT_MOST = 30
"""Such answers of a server that has given no other: it is not what it was taken for."""

NO_KEY = "none"
"""The client wants a key for a server that wants none."""


@dataclass
class JudgeUsage:
    """Requests, tokens and prices of a judge.

    Attributes:
        requests: that the server answered, errors included.
        cached: questions that cost nothing, since they had been asked before.
        retries: tries that failed for a passing reason before a request was answered.
        malformed: answers that were no chat completions.
        declined: questions whose text the server would not read.
        input_tokens, output_tokens: as the server counts them.
        input_price, output_price: of a million tokens.
    """

    input_price: float
    output_price: float
    requests: int = 0
    cached: int = 0
    retries: int = 0
    malformed: int = 0
    declined: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def cost(self) -> float:
        """In the currency of the prices."""
        return (self.input_tokens * self.input_price + self.output_tokens * self.output_price) / 1e6

    def figures(self) -> dict[str, float]:
        """As metrics.json has it."""
        counts = ("requests", "cached", "retries", "malformed", "declined", "input_tokens", "output_tokens")
        return {**{name: getattr(self, name) for name in counts}, "cost": self.cost}


class OpenAiJudgeModel:
    """Asks a server, several questions at once.

    The mass of an answer comes from the probabilities of the first tokens (`logprobs`), else from the text, as does all
    that follows on reasoning: then it is 1 for the option named. A question that the server answers with nothing, with
    a refusal, or time and again with what is no chat completion, has no mass.

    Requests that fail for a passing reason (no connection, a time-out, 408, 409, 429, 5xx) are repeated by the `openai`
    library, after 0.5, 1, 2, 4, 8, 8, ... seconds less up to a quarter, or what the server's `Retry-After` says.

    Args:
        settings: server, model and limits.

    Attributes:
        usage: what was asked so far.

    Raises:
        JudgeError: the `openai` package or the key is missing.
    """

    def __init__(self, settings: OpenAiJudge) -> None:
        if find_spec("openai") is None:
            raise JudgeError(
                "judge=openai needs the openai package, which is not installed.",
                where="judge",
                fix="pip install 'rlhf-lightning[judge]'",
            )
        self.name = settings.model
        self.usage = JudgeUsage(settings.price_per_million_input, settings.price_per_million_output)
        self._settings = settings
        self._api_key = api_key_for(settings)
        self._cache = AnswerCache(Path(settings.cache)) if settings.cache is not None else None
        self._rate = RequestRate(settings.requests_per_minute)
        self._rivals = RIVALS
        self._has_worked = False
        self._gives_probabilities = False
        self._has_warned: set[str] = set()
        for chatty in ("httpx", "httpx2"):  # a line for each request
            logging.getLogger(chatty).setLevel(logging.WARNING)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question, in order; the same question is asked once.

        Raises:
            JudgeError: the server cannot be used. Nothing more is asked then; what was answered is in the cache.
        """
        keys = []
        asked: dict[str, Question] = {}
        for question in questions:
            keys.append(self._key(question))
            asked.setdefault(keys[-1], question)
        found = self._kept(asked)
        missing = {key: question for key, question in asked.items() if key not in found}
        self.usage.cached += len(questions) - len(missing)
        if missing:
            found |= asyncio.run(self._ask_all(missing))
        answers = []
        for key in keys:
            answers.append(found[key])
            found[key] = replace(found[key], input_tokens=0, output_tokens=0, cached=True)
        return answers

    def _key(self, question: Question) -> str:
        return request_key(
            {
                "reading": READING,
                "base_url": self._settings.base_url.rstrip("/"),
                "request": chat_request(question, self._settings),
                "options": question.options,
                "opening": question.opening,
                "conclusion": question.conclusion,
            }
        )

    def _kept(self, keys: Mapping[str, Question]) -> dict[str, Answer]:
        kept = {key: self._cache.get(key) for key in keys} if self._cache is not None else {}
        found = {key: answer for key, answer in kept.items() if answer is not None}
        self._has_worked = self._has_worked or bool(found)
        return found

    async def _ask_all(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """So many at once; the first error, or an interruption, cancels all others."""
        found: dict[str, Answer] = {}
        pending = iter(questions.items())

        async def work(client: AsyncOpenAI) -> None:
            for key, question in pending:
                found[key] = await self._ask(client, question)
                if self._cache is not None:
                    self._cache.put(key, found[key])

        async with self._client() as client:
            workers = min(self._settings.concurrency, len(questions))
            tasks = [asyncio.create_task(work(client)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return found

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, Timeout  # here, since it is an extra and takes a second

        limit = self._settings.timeout
        client = AsyncOpenAI(
            api_key=self._api_key or NO_KEY,
            base_url=self._settings.base_url,
            timeout=Timeout(limit, connect=min(limit, CONNECT_SECONDS)),
            max_retries=self._settings.max_retries,
        )
        if self._api_key is None:
            # The client reads these from the environment, and who wants no key is not the one they are for.
            client.organization = client.project = None
        return client

    async def _ask(self, client: AsyncOpenAI, question: Question) -> Answer:
        import openai  # here, since it is an extra

        request = chat_request(question, self._settings)
        for attempt in range(MALFORMED_TRIES):
            while seconds := self._rate.seconds_to_wait():
                await asyncio.sleep(seconds)
            try:
                body = await self._send(client, request)
            except openai.APIError as error:
                if not is_about_question(error, self._has_worked):
                    raise explained(error, self._settings, self._api_key) from error
                self.usage.declined += 1
                self._warn_once("turns a question down", error_message(error))
                return Answer((0.0, 0.0))
            response = read_response(body)
            if response is not None:
                return self._answer(question, response)
            self._count_malformed(body)
            await asyncio.sleep(MALFORMED_PAUSE * 2**attempt if attempt + 1 < MALFORMED_TRIES else 0.0)
        return Answer((0.0, 0.0))

    async def _send(self, client: AsyncOpenAI, request: Mapping[str, Any]) -> str:
        """The body of the server's response; asks for fewer likely tokens where the server does not give so many."""
        import openai  # here, since it is an extra

        top_logprobs = self._rivals
        create = client.chat.completions.with_raw_response.create
        try:
            response = await create(**with_top_logprobs(request, top_logprobs))
        except openai.APIStatusError as error:
            if (
                top_logprobs == FEWER_TOP_LOGPROBS
                or error.status_code not in BAD_REQUEST
                or "top_logprobs" not in error_message(error)
            ):
                raise
            self._rivals = FEWER_TOP_LOGPROBS
            response = await create(**with_top_logprobs(request, FEWER_TOP_LOGPROBS))
        self.usage.requests += 1
        self.usage.retries += response.retries_taken
        return str(response.http_response.text)

    def _answer(self, question: Question, response: ChatResponse) -> Answer:
        self.usage.input_tokens += response.input_tokens
        self.usage.output_tokens += response.output_tokens
        if question.reasons:
            mass = mass_in_reasoning(response, question.options, question.conclusion)
        elif not self._settings.logprobs:
            mass = mass_in_text(response.text, question.options)
        elif response.positions is not None:
            mass = mass_in_probabilities(response.positions, question.options, question.opening)
            self._gives_probabilities = True
        elif response.text and not self._gives_probabilities:
            raise JudgeError(
                "The judge's server gives no probabilities (logprobs), though it was asked for them.",
                where=f"judge.model={self._settings.model}, judge.base_url={self._settings.base_url}",
                fix="set judge.logprobs=false: labels are hard then",
            )
        else:
            mass = (0.0, 0.0)  # a refusal has no tokens; and a gateway may now and then ask a lesser server
        self._has_worked = True
        return Answer(mass, response.text, response.input_tokens, response.output_tokens)

    def _count_malformed(self, body: str) -> None:
        """
        Raises:
            JudgeError: there has been nothing else.
        """
        self.usage.malformed += 1
        shown = " ".join(body[:200].split()) or "nothing"
        self._warn_once("gives an answer that is no chat completion", shown)
        if not self._has_worked and self.usage.malformed >= MALFORMED_AT_MOST:
            raise JudgeError(
                f"What answers as the judge's server gives no chat completions: {shown}",
                where=f"judge.base_url={self._settings.base_url}",
                fix="name the address of an OpenAI-compatible server; it usually ends in /v1",
            )

    def _warn_once(self, what: str, said: str) -> None:
        if what not in self._has_warned:
            logger.warning("The judge's server %s, which counts as unanswered: %s", what, said)
        self._has_warned.add(what)


def api_key_for(settings: OpenAiJudge) -> str | None:
    """The server's key, from the environment; None where it wants none.

    Raises:
        JudgeError: it is not there.
    """
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise JudgeError(
            f"The judge's key is missing: the environment variable {settings.api_key_env} is not set.",
            where=f"judge.api_key_env={settings.api_key_env}",
            fix=f"export {settings.api_key_env}=..., or set judge.api_key_env=null for a server that wants no key",
        )
    return key
