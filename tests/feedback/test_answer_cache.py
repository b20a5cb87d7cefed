"""Answers on disk."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.feedback.judge_model import Answer, AnswerCache, request_key

KEY = request_key({"model": "m", "messages": []})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "answers.sqlite"


@pytest.mark.parametrize("text", ['so\n"yes" ü', "half a pair: \ud800", "\0", ""])
def test_an_answer_comes_back_and_costs_nothing(file: Path, text: str) -> None:
    AnswerCache(file).put(KEY, Answer((0.75, 0.125), text, input_tokens=10, output_tokens=2))
    kept = AnswerCache(file).get(KEY)
    assert kept == Answer((0.75, 0.125), text, input_tokens=0, output_tokens=0, cached=True)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_request_s_key_depends_on_all_of_it_and_not_on_its_order() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "seed": 0}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    others = [{**request, "seed": 1}, {**request, "model": "n"}, {**request, "messages": []}]
    assert len({request_key(one) for one in (request, *others)}) == 4


def test_of_two_answers_the_last_stays_and_others_are_untouched(file: Path) -> None:
    cache = AnswerCache(file)
    for mass in (0.1, 0.2):
        cache.put(KEY, Answer((mass, 0.5)))
    cache.put("other", Answer((0.3, 0.5)))
    assert [answer and answer.mass[0] for answer in map(cache.get, (KEY, "other", "never asked"))] == [0.2, 0.3, None]


def test_what_was_never_asked_is_absent_and_leaves_no_file(file: Path) -> None:
    assert AnswerCache(file).get(KEY) is None
    assert not file.parent.exists()
    file.parent.mkdir()
    file.touch()  # so it is while another process begins
    assert AnswerCache(file).get(KEY) is None


@pytest.mark.parametrize("mass", [(0.0, 0.0), (float("nan"), 0.5), (float("inf"), 0.5)])
def test_an_answer_that_names_no_option_is_not_kept(file: Path, mass: tuple[float, float]) -> None:
    AnswerCache(file).put(KEY, Answer(mass, "well"))
    assert not file.exists()


def a_directory(file: Path) -> None:
    (file / "ab").mkdir(parents=True)


def a_text(file: Path) -> None:
    file.write_text("my notes\n" * 200)


def another_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE answers (key, first, second, text)")


def a_truncated_cache(file: Path) -> None:
    for number in range(50):
        AnswerCache(file).put(str(number), Answer((0.5, 0.25), "since it is kind" * 20))
    os.truncate(file, file.stat().st_size // 2)


UNUSABLE = [
    (a_directory, "it is a directory, as earlier versions made them"),
    (a_text, "file is not a database"),
    (another_database, "it is another program's database"),
    (a_truncated_cache, "database disk image is malformed"),
]


@pytest.mark.parametrize(("make", "reason"), UNUSABLE)
def test_what_is_no_such_cache_is_refused_and_left_alone(file: Path, make: Callable[[Path], None], reason: str) -> None:
    file.parent.mkdir()
    make(file)
    before = None if file.is_dir() else file.read_bytes()
    for access in (lambda: AnswerCache(file).get(KEY), lambda: AnswerCache(file).put(KEY, Answer((0.5, 0.25)))):
        with pytest.raises(JudgeError, match=f"cannot be used: {reason}") as raised:
            access()
        assert raised.value.where == f"judge.cache={file}"
        assert "move it away" in str(raised.value.fix)
    assert (None if file.is_dir() else file.read_bytes()) == before


def test_damage_anywhere_is_an_error_of_the_user_or_nothing(file: Path) -> None:
    """Bytes of the header, of the table's definition and of the rows, one after the other."""
    cache = AnswerCache(file)
    cache.put(KEY, Answer((0.5, 0.25), "since it is kind"))
    whole = file.read_bytes()
    refused = 0
    for place in [*range(110), *(place for place, byte in enumerate(whole) if place > 110 and byte)]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            cache.get(KEY)
        except JudgeError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("obstacle", ["a file in the way", "a file that cannot be opened"])
def test_a_disk_that_takes_nothing_is_warned_about_once(
    file: Path, obstacle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file in the way":
        file.parent.write_text("")
    else:

        def full(*_: object, **__: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(sqlite3, "connect", full)
    cache = AnswerCache(file)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.put(request_key({"number": number}), Answer((1.0, 0.0)))
    assert len(caplog.records) == 1
    assert "judge.cache" in caplog.text
    assert cache.get(KEY) is None


def _write(file: Path, writer: int) -> None:
    cache = AnswerCache(file)
    for number in range(25):
        cache.put(f"shared {number % 5}", Answer((1.0, 0.0), f"{writer} " * 2000))
        cache.put(f"{writer} {number}", Answer((1.0, 0.0)))
        kept = cache.get(f"shared {(number + 3) % 5}")
        assert kept is None or len(set(kept.text.split())) == 1, "half of one answer and half of another"
    os._exit(0)


def test_several_processes_write_at_once_and_lose_nothing(file: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(file, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    cache = AnswerCache(file)
    assert None not in [cache.get(f"{writer} {number}") for writer in range(4) for number in range(25)]
    shared = [cache.get(f"shared {number}") for number in range(5)]
    assert [answer is not None and len(set(answer.text.split())) for answer in shared] == [1] * 5
