"""How requests are kept apart."""

from __future__ import annotations

from rlhf_lightning.feedback.chat_api import RequestRate


def test_requests_are_kept_apart() -> None:
    """20 a minute are 3 seconds apart."""
    now = [100.0]
    rate = RequestRate(20, clock=lambda: now[0])
    assert rate.seconds_to_wait() == 0.0
    assert [rate.seconds_to_wait() for _ in range(2)] == [3.0, 3.0]
    now[0] = 102.0
    assert rate.seconds_to_wait() == 1.0
    now[0] = 103.0
    assert [rate.seconds_to_wait() for _ in range(2)] == [0.0, 3.0]


def test_neither_an_idle_minute_nor_a_late_request_is_made_up_for() -> None:
    now = [0.0]
    rate = RequestRate(60, clock=lambda: now[0])
    rate.seconds_to_wait()
    now[0] = 50.5
    assert [rate.seconds_to_wait() for _ in range(2)] == [0.0, 1.0]


def test_whoever_waits_as_told_gets_a_turn() -> None:
    """Five who ask at once, one a second: at 0, 1, 2, 3 and 4."""
    now = [0.0]
    rate = RequestRate(60, clock=lambda: now[0])
    waiting, turns = [0.0] * 5, []
    while waiting:
        now[0] = min(waiting)
        waiting.remove(now[0])
        seconds = rate.seconds_to_wait()
        if seconds:
            waiting.append(now[0] + seconds)
        else:
            turns.append(now[0])
    assert turns == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_without_a_limit_nobody_waits() -> None:
    rate = RequestRate(None, clock=lambda: 0.0)
    assert [rate.seconds_to_wait() for _ in range(100)] == [0.0] * 100
