"""The true reward of rollouts in the courtesy world: watched, never trained on."""

from __future__ import annotations

from rlhf_lightning.rollouts.collector import Collected
from rlhf_lightning.worlds.courtesy import judge


def gold_monitor(_: int, collected: Collected) -> dict[str, float]:
    """The mean gold reward of an iteration's rollouts, as `objective/gold`."""
    rewards = [
        judge(completion.prompt.last_turn, completion.reply, completion.finished).reward
        for completion in collected.completions
    ]
    return {"objective/gold": sum(rewards) / len(rewards)}
