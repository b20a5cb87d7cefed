"""Questions to a judge and its answers, independent of the model behind it, and a persistent cache of answers."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.records import Conversation


@dataclass(frozen=True, slots=True)
class Question:
    """A question with two options.

    Attributes:
        turns: what the judge reads; the last turn is the user's, and asks.
        options: the two words that it may answer.
        opening: what its answer begins with, before the option; empty: the option at once.
        reasons: whether it reasons first. Its answer is then its reasoning, `conclusion`, and the option.
        conclusion: what leads from the reasoning to the option.
        vote: tells apart several answers to the same question, whose reasoning is sampled.
    """

    turns: Conversation
    options: tuple[str, str]
    opening: str = ""
    reasons: bool = False
    conclusion: str = ""
    vote: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of a judge.

    Attributes:
        mass: the probability of each option as the next words; what is left is that of everything else. Of a judge
            that gives text alone: 1 for the option that it named, (0, 0) where it named none.
        text: its reasoning, or all that it said, where it said something; else empty.
        input_tokens, output_tokens: read and written for this answer; 0 where it came from a cache.
        cached: whether it came from a cache.
    """

    mass: tuple[float, float]
    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = False

    @property
    def total_mass(self) -> float:
        """The probability that the judge answers one of the options at all."""
        return self.mass[0] + self.mass[1]


class JudgeModel(Protocol):
    """A model that answers questions."""

    name: str
    """As reports call it."""

    def answers(self, questions: list[Question]) -> list[Answer]:
        """An answer to each question, in order."""
        ...


logger = logging.getLogger(__name__)

APPLICATION_ID = int.from_bytes(b"RLHF")
"""Stands in the file's header, so that another program's database is never written to."""
BUSY_SECONDS = 60.0
"""To wait for another process's write."""
TABLE = "CREATE TABLE answers (key TEXT PRIMARY KEY, first REAL NOT NULL, second REAL NOT NULL, text BLOB NOT NULL)"


def request_key(request: Mapping[str, Any]) -> str:
    """Cache key of a request: the hash of its content, independent of key order."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """Answers by request key, in one SQLite file.

    Several processes may share it, on a network file system too (so it has no write-ahead log): a write waits for the
    others, and of two answers to one request the last stays. A disk that cannot be read or takes nothing (full,
    read-only) is warned about once and stops nobody.

    Args:
        file: made, with its folders, when the first answer is kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._has_warned = False

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key, without tokens, since it costs none; None where there is none.

        Raises:
            JudgeError: the file is damaged or is no such cache.
        """
        if not os.path.exists(self.file):
            return None
        with self._explained(), self._connect() as database:
            if not self._has_table(database):
                return None
            row = database.execute("SELECT first, second, text FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            if [type(field) for field in row] != [float, float, bytes]:
                raise self._unusable("a row is damaged")
            return Answer((row[0], row[1]), row[2].decode("utf-8", "surrogatepass"), cached=True)
        return None

    def put(self, key: str, answer: Answer) -> None:
        """Store an answer; one that names no option is not stored, so that it is asked again.

        Raises:
            JudgeError: the file is damaged or is no such cache.
        """
        if not 0.0 < answer.total_mass < math.inf:
            return
        with self._explained(), self._connect() as database:
            database.execute("BEGIN IMMEDIATE")
            if not self._has_table(database):
                database.execute(TABLE)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            text = answer.text.encode("utf-8", "surrogatepass")
            database.execute("REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, *answer.mass, text))
            database.execute("COMMIT")

    def _connect(self) -> closing[sqlite3.Connection]:
        """A connection for one access, so that forked processes share none."""
        if self.file.is_dir():
            raise self._unusable("it is a directory, as earlier versions made them")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return closing(sqlite3.connect(self.file, BUSY_SECONDS, isolation_level=None))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Context in which a disk error is logged as a warning, and a damaged file raises JudgeError."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            if not self._has_warned:
                logger.warning("The judge's answers cannot be kept in %s (judge.cache): %s", self.file, error)
            self._has_warned = True
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise self._unusable(str(error)) from error

    def _has_table(self, database: sqlite3.Connection) -> bool:
        """True if the cache has its table.

        Raises:
            JudgeError: the database is another program's.
        """
        (owner,) = database.execute("PRAGMA application_id").fetchone()
        if owner != APPLICATION_ID and (owner or database.execute("SELECT 1 FROM sqlite_master").fetchone()):
            raise self._unusable("it is another program's database")
        return bool(owner)

    def _unusable(self, reason: str) -> JudgeError:
        return JudgeError(
            f"The file of the judge's answers cannot be used: {reason}.",
            where=f"judge.cache={self.file}",
            fix="move it away (its answers are then asked for again), or set judge.cache to another file, or to null",
        )
