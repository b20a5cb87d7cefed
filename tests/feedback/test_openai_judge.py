"""A judge behind a server: what it asks, what it makes of the answers, and what it does when the server fails."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Response, completion, fails, hangs_up, judge_settings, says, sends, thinks

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.feedback import openai_judge
from rlhf_lightning.feedback.judge_model import Answer, Question
from rlhf_lightning.feedback.openai_judge import OpenAiJudgeModel
from rlhf_lightning.records import Message
from rlhf_lightning.runs.run import interruptible

YES = thinks([("yes", 0.75), ("no", 0.125)])
UNANSWERED = (0.0, 0.0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_judge, "MALFORMED_PAUSE", 0.01)


def question(text: str = "is it kind?", **values: Any) -> Question:
    turns = (Message("user", "hello"), Message("assistant", "hi"), Message("user", text))
    return Question(turns, ("yes", "no"), **values)


def questions(count: int) -> list[Question]:
    return [question(f"number {index}") for index in range(count)]


def judge(server: ChatServer, **values: Any) -> OpenAiJudgeModel:
    return OpenAiJudgeModel(judge_settings(server, **values))


def error_of(server: ChatServer, asked: int = 1, **values: Any) -> str:
    """What the user reads where one error stops it all."""
    with pytest.raises(JudgeError) as caught:
        judge(server, **values).answers(questions(asked))
    return str(caught.value)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def test_probabilities_are_asked_for_and_read() -> None:
    with ChatServer(YES) as server:
        model = judge(server)
        answers = model.answers([question()])
    assert answers == [Answer((pytest.approx(0.75), pytest.approx(0.125)), "yes", 12, 3)]  # type: ignore[arg-type]
    (received,) = server.received
    assert received.path == "/v1/chat/completions"
    assert received.fields == {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "is it kind?"},
        ],
        "temperature": 0.0,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert model.name == "tiny"


def test_without_probabilities_the_text_is_a_hard_answer() -> None:
    with ChatServer(says("No, it is not.")) as server:
        (answer,) = judge(server, logprobs=False).answers([question()])
    assert answer.mass == (0.0, 1.0)
    assert not {"logprobs", "top_logprobs"} & set(server.received[0].fields)


def test_each_vote_reasons_by_a_seed_of_its_own() -> None:
    text = "It is not polite. No.\n\nThe answer is yes."
    with ChatServer(says(text)) as server:
        asked = [question(reasons=True, conclusion="\n\nThe answer is", vote=vote) for vote in range(3)]
        answers = judge(server, cot=True, votes=3, max_reasoning_tokens=100, concurrency=1).answers(asked)
    assert [answer.mass for answer in answers] == [(1.0, 0.0)] * 3
    assert answers[0].text == text
    sent = [received.fields for received in server.received]
    assert [fields["seed"] for fields in sent] == [0, 1, 2]
    assert all(fields["temperature"] == 1.0 and fields["max_tokens"] == 132 for fields in sent)
    assert not any("logprobs" in fields for fields in sent)


def test_order_is_kept_whichever_comes_first() -> None:
    """The first questions take longest, and each says its own number."""

    def echo(fields: Any) -> Response:
        number = int(fields["messages"][-1]["content"].split()[1])
        return says("yes" if number % 3 == 0 else "no", seconds=0.1 - 0.01 * number)(fields)

    with ChatServer(echo) as server:
        answers = judge(server, logprobs=False, concurrency=10).answers(questions(10))
    assert [answer.mass[0] for answer in answers] == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_so_many_requests_at_once_and_no_more() -> None:
    with ChatServer(says("yes", seconds=0.05)) as server:
        judge(server, logprobs=False, concurrency=3).answers(questions(12))
    assert server.at_once == 3
    assert len(server.received) == 12


def test_a_question_asked_twice_is_one_request() -> None:
    with ChatServer(YES) as server:
        model = judge(server)
        answers = model.answers([question("a"), question("b"), question("a")])
    assert len(server.received) == 2
    assert [answer.input_tokens for answer in answers] == [12, 12, 0]
    assert [answer.cached for answer in answers] == [False, False, True]
    assert model.usage.cached == 1


def test_what_it_cost() -> None:
    """Five requests of 12 tokens read and 3 written: 60 at 2 and 15 at 10 per million."""
    with ChatServer(YES, first=[fails(500)]) as server:
        model = judge(server, price_per_million_input=2.0, price_per_million_output=10.0, concurrency=1)
        model.answers(questions(5))
    usage = model.usage
    assert (usage.requests, usage.retries, usage.input_tokens, usage.output_tokens) == (5, 1, 60, 15)
    assert usage.cost == pytest.approx(60 * 2e-6 + 15 * 10e-6)


def test_requests_per_minute() -> None:
    """300 a minute are a fifth of a second apart, however many may run at once."""
    with ChatServer(YES) as server:
        judge(server, requests_per_minute=300, concurrency=8).answers(questions(6))
    times = [received.time for received in server.received]
    assert len(times) == 6
    assert times[-1] - times[0] > 0.6  # five gaps; the first request's way may be the longest, up to two of them


@pytest.mark.parametrize(
    "failure",
    [fails(429, retry_after="0.05"), fails(500), fails(503), fails(408), fails(409), hangs_up],
    ids=["429", "500", "503", "408", "409", "hangs up"],
)
def test_what_passes_is_tried_again(failure: Callable[[Any], Response]) -> None:
    with ChatServer(YES, first=[failure]) as server:
        model = judge(server)
        (answer,) = model.answers([question()])
    assert answer.total_mass > 0.8
    assert len(server.received) == 2
    assert model.usage.retries == 1


def test_the_server_says_how_long_to_wait() -> None:
    with ChatServer(YES, first=[fails(429, retry_after="1.2")]) as server:
        judge(server).answers([question()])
    first, second = (received.time for received in server.received)
    assert 1.2 <= second - first < 3.0


def test_a_slow_answer_is_not_waited_for() -> None:
    with ChatServer(YES, first=[says("yes", seconds=20.0)]) as server, at_most(10.0):
        (answer,) = judge(server, timeout=0.5).answers([question()])
    assert answer.total_mass > 0.8
    assert len(server.received) == 2


def test_a_server_that_is_killed_and_comes_back() -> None:
    """It dies with requests under way; all are answered once it is there again, and none is lost or doubled."""
    back: list[threading.Timer] = []

    def dies(_: Any) -> Response:
        if not back:
            back.append(threading.Timer(0.5, server.start))
            threading.Thread(target=server.stop).start()
            back[0].start()
        return Response(None)

    with ChatServer(YES, first=[YES] * 5 + [dies] * 2) as server:
        model = judge(server, max_retries=6, concurrency=2)
        answers = model.answers(questions(10))
        back[0].join()
    assert [answer.total_mass > 0.8 for answer in answers] == [True] * 10
    assert model.usage.requests == 10
    assert model.usage.retries >= 2


def test_a_server_that_is_not_there() -> None:
    with ChatServer(YES) as server:
        pass
    with at_most(10.0):
        message = error_of(server)
    assert "cannot be reached, in 2 tries" in message
    assert f"judge.base_url={server.url}" in message
    assert "start the server" in message


def test_a_server_that_never_answers() -> None:
    with ChatServer(says("yes", seconds=0.5)) as server:
        message = error_of(server, timeout=0.2)
    assert "did not answer within 0.2 seconds, in 2 tries" in message
    assert "judge.timeout" in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key(status: int) -> None:
    with ChatServer(fails(status, "who are you?")) as server:
        message = error_of(server, asked=20)
    assert f"does not let us in ({status}): who are you?" in message
    assert "set judge.api_key_env=NAME, and export NAME" in message
    assert len(server.received) <= 8  # those under way at once; none was tried again


def test_a_key_that_is_refused_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-hush-hush")
    with ChatServer(fails(401, "Incorrect key: sk-hush-hush.")) as server:
        message = error_of(server, api_key_env="TINY_KEY")
    assert "export TINY_KEY with a valid key" in message
    assert "Incorrect key: <redacted>." in message
    assert "hush" not in message


def test_a_model_that_is_not_there() -> None:
    with ChatServer(fails(404, "The model `tiny` does not exist")) as server:
        message = error_of(server)
    assert "The model `tiny` does not exist" in message
    assert "judge.model=tiny" in message


def test_a_request_that_is_not_taken() -> None:
    with ChatServer(fails(400, "logprobs is not supported with this model")) as server:
        message = error_of(server)
    assert "does not take the request (400): logprobs is not supported" in message
    assert "set judge.logprobs=false" in message
    with ChatServer(sends('{"detail": "Unexpected fields in the request: seed"}', status=422)) as server:
        message = error_of(server, logprobs=False)
    assert "(422): Unexpected fields in the request: seed" in message
    assert "logprobs" not in message


@pytest.mark.parametrize(("status", "said"), [(429, "still turns requests away"), (500, "fails, in 2 tries (500)")])
def test_what_does_not_pass(status: int, said: str) -> None:
    with ChatServer(fails(status, "busy", retry_after="0.05")) as server:
        message = error_of(server)
        assert len(server.received) == 2
    assert said in message
    assert "busy" in message
    assert ("judge.requests_per_minute" in message) == (status == 429)


def test_an_error_stops_all_others_at_once() -> None:
    """Requests that take a minute and one that waits to be repeated are dropped, and none of the rest begins."""
    slow = says("yes", seconds=60.0)
    busy = fails(503, retry_after="0.8")
    with ChatServer(YES, first=[slow, busy, slow, fails(401)]) as server, at_most(8.0):
        error_of(server, asked=100, concurrency=4, timeout=100.0)
        time.sleep(1.1)
    assert len(server.received) == 4


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where whoever started the tests in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("handled_by", [nullcontext, interruptible], ids=["python", "a run"])
def test_ctrl_c_stops_at_once(handled_by: Callable[[], AbstractContextManager[object]]) -> None:
    def press() -> None:
        while len(server.received) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with ChatServer(says("yes", seconds=30.0)) as server, at_most(8.0):
        threading.Thread(target=press).start()
        with handled_by(), pytest.raises(KeyboardInterrupt):
            judge(server, timeout=100.0).answers(questions(50))
        time.sleep(0.3)
    assert len(server.received) == 8


@pytest.mark.parametrize(
    "malformed",
    ["<html>busy</html>", '{"choices": [{', '{"choices": []}', '{"error": {"code": 1}}', "", '"yes"'],
)
def test_a_malformed_answer_is_asked_for_again_and_counts_as_none(
    malformed: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = sends(malformed)
    with ChatServer(YES, first=[bad, YES, bad, bad, bad]) as server, caplog.at_level(logging.WARNING):
        model = judge(server, concurrency=1)
        answers = model.answers(questions(3))
    assert [answer.mass == UNANSWERED for answer in answers] == [False, True, False]
    assert model.usage.malformed == 4
    assert len(server.received) == 6
    assert len([record for record in caplog.records if "no chat completion" in record.message]) == 1


def test_what_gives_nothing_but_malformed_answers_is_no_such_server() -> None:
    with ChatServer(sends("<html>Welcome</html>")) as server:
        message = error_of(server, asked=100, concurrency=4)
    assert "gives no chat completions: <html>Welcome</html>" in message
    assert "/v1" in message
    assert len(server.received) <= 34


@pytest.mark.parametrize("content", [None, "", "I would rather not say."])
def test_a_refusal_names_no_option(content: str | None) -> None:
    with ChatServer(says(content)) as server:
        model = judge(server, logprobs=False)
        (answer,) = model.answers([question()])
    assert answer.mass == UNANSWERED
    assert model.usage.malformed == 0


def test_a_refusal_has_no_probabilities_either() -> None:
    refusal = completion({"message": {"content": None, "refusal": "no"}, "logprobs": {"content": None}})
    with ChatServer(refusal) as server:
        (answer,) = judge(server).answers([question()])
    assert answer.mass == UNANSWERED


def test_a_server_without_probabilities() -> None:
    with ChatServer(says("yes")) as server:
        message = error_of(server, asked=30)
    assert "gives no probabilities" in message
    assert "judge.logprobs=false" in message
    assert len(server.received) <= 8


def test_a_server_that_gave_probabilities_before() -> None:
    with ChatServer(YES, first=[YES, says("yes")]) as server:
        answers = judge(server, concurrency=1).answers(questions(3))
    assert [answer.mass == UNANSWERED for answer in answers] == [False, True, False]


def test_a_server_that_gives_fewer_rivals() -> None:
    """It takes at most 5; what was asked before is found again although the request was another in the end."""

    def few(fields: Any) -> Response:
        return (YES if fields["top_logprobs"] <= 5 else fails(400, "top_logprobs must be at most 5"))(fields)

    with ChatServer(few) as server:
        model = judge(server, concurrency=1)
        answers = model.answers(questions(3))
    assert [answer.total_mass > 0.8 for answer in answers] == [True] * 3
    assert [received.fields["top_logprobs"] for received in server.received] == [20, 5, 5, 5]


def test_a_question_that_is_turned_down_stops_no_others(caplog: pytest.LogCaptureFixture) -> None:
    with (
        ChatServer(YES, first=[YES, fails(400, "this is too long for me")]) as server,
        caplog.at_level(logging.WARNING),
    ):
        model = judge(server, concurrency=1)
        answers = model.answers(questions(3))
    assert [answer.mass == UNANSWERED for answer in answers] == [False, True, False]
    assert model.usage.declined == 1
    assert "this is too long for me" in caplog.text


def test_a_content_filter_stops_nothing_even_at_first() -> None:
    with ChatServer(YES, first=[fails(400, "filtered", code="content_filter")]) as server:
        answers = judge(server, concurrency=1).answers(questions(2))
    assert [answer.mass == UNANSWERED for answer in answers] == [True, False]


def test_the_same_again_costs_no_request(tmp_path: Path) -> None:
    """Not even a server."""
    with ChatServer(YES) as server:
        first = judge(server, cache=str(tmp_path / "answers")).answers(questions(5))
    again = judge(server, cache=str(tmp_path / "answers"), base_url=f"{server.url}/")
    second = again.answers(questions(5))
    assert [answer.mass for answer in second] == [answer.mass for answer in first]
    assert all(answer.cached and answer.input_tokens == 0 and answer.output_tokens == 0 for answer in second)
    assert (again.usage.requests, again.usage.cached, again.usage.cost) == (0, 5, 0.0)
    assert len(server.received) == 5


def test_only_what_is_missing_is_asked_after_an_error(tmp_path: Path) -> None:
    with ChatServer(YES, first=[YES, YES, YES, fails(401)]) as server:
        with pytest.raises(JudgeError):
            judge(server, cache=str(tmp_path / "answers"), concurrency=1).answers(questions(6))
        judge(server, cache=str(tmp_path / "answers"), concurrency=1).answers(questions(6))
    asked = [received.asked for received in server.received]
    assert asked == [f"number {index}" for index in (0, 1, 2, 3, 3, 4, 5)]


def test_an_unanswered_question_is_asked_again(tmp_path: Path) -> None:
    with ChatServer(says("well"), first=[says("yes")]) as server:
        for _ in range(2):
            judge(server, cache=str(tmp_path / "answers"), logprobs=False, concurrency=1).answers(questions(2))
    assert [received.asked for received in server.received] == ["number 0", "number 1", "number 1"]


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"logprobs": False}, {"options": ("no", "yes")}, {"vote": 1}, {"turns": "else"}]
)
def test_another_question_is_another_request(tmp_path: Path, changed: dict[str, Any]) -> None:
    reasons = "vote" in changed
    settings = {"cache": str(tmp_path / "answers"), "cot": reasons}
    with ChatServer(thinks([("yes", 0.5), ("no", 0.25)])) as server:
        judge(server, **settings).answers([question(reasons=reasons)])
        settings |= {name: value for name, value in changed.items() if name in ("model", "logprobs")}
        own = {name: value for name, value in changed.items() if name in ("options", "vote")}
        text = "another" if "turns" in changed else "is it kind?"
        turns = question(text).turns
        judge(server, **settings).answers([Question(turns, **{"options": ("yes", "no"), "reasons": reasons, **own})])
    assert len(server.received) == 2


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", " sk-hush-hush\n")
    with ChatServer(YES) as server:
        judge(server, api_key_env="TINY_KEY").answers([question()])
    assert server.received[0].headers["authorization"] == "Bearer sk-hush-hush"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush-hush")
    if value is not None:
        monkeypatch.setenv("TINY_KEY", value)
    with ChatServer(YES) as server:
        message = error_of(server, api_key_env="TINY_KEY")
    assert "the environment variable TINY_KEY is not set" in message
    assert not server.received


def test_a_server_that_wants_no_key_is_told_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET")
    for name in names:
        monkeypatch.setenv(name, "hush-hush")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/elsewhere")
    with ChatServer(YES) as server:
        judge(server).answers([question()])
    assert "hush" not in str(server.received[0].headers)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_judge, "find_spec", lambda _: None)
    with ChatServer(YES) as server:
        message = error_of(server)
    assert "pip install 'rlhf-lightning[judge]'" in message


def test_no_line_in_the_log_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    with ChatServer(YES) as server, caplog.at_level(logging.INFO):
        judge(server).answers(questions(3))
    assert not caplog.records
