"""Answers of a judge kept on disk: what was asked before costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.feedback.judge_model import Answer

logger = logging.getLogger(__name__)


def request_key(request: Mapping[str, Any]) -> str:
    """A request's name: the hash of all that is in it, in whichever order."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """A small file for each answer, under the first letters of its request's key.

    Several processes may share a cache: a file is written aside and put in its place in one step, and of two that
    write the same answer the last one stays. What cannot be read is as good as absent. A disk that takes nothing (full,
    read-only) is warned about once and does not stop anybody.

    Args:
        directory: made when the first answer is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._has_warned = False

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key, without tokens, since it costs none; None where there is none."""
        try:
            return _answer(json.loads(self._place(key).read_bytes()))
        except (OSError, ValueError):
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer; one that names no option is not kept, so that it is asked for again."""
        if answer.total_mass <= 0.0:
            return
        place = self._place(key)
        aside = place.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"mass": answer.mass, "text": answer.text}), encoding="utf-8")
            aside.replace(place)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            self._warn(error)

    def _place(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            logger.warning("The judge's answers cannot be kept in %s (judge.cache): %s", self.directory, error)
        self._has_warned = True


def _answer(fields: Any) -> Answer:
    """An answer from a file's fields.

    Raises:
        ValueError: they are not an answer's.
    """
    mass, text = (fields.get("mass"), fields.get("text")) if isinstance(fields, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(mass, list) or len(mass) != 2:
        raise ValueError("no answer")
    first, second = (float(share) if isinstance(share, int | float) else math.nan for share in mass)
    if not (first >= 0.0 and second >= 0.0 and 0.0 < first + second < math.inf):
        raise ValueError("no probabilities")
    return Answer((first, second), text, cached=True)
