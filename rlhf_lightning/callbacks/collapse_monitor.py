"""Diversity metrics of an iteration's rollouts, which reveal mode collapse early."""

from __future__ import annotations

from rlhf_lightning.rollouts.collector import Collected
from rlhf_lightning.rollouts.variety import distinct, top_opening_share


def collapse_monitor(_: int, collected: Collected) -> dict[str, float]:
    """`rollout/top_opening_share` and `rollout/distinct_2` of an iteration's replies, without end-of-sequence tokens.

    The second depends on how many replies there are: compare it between iterations of one batch size.
    """
    replies = [done.reply_ids[:-1] if done.finished else done.reply_ids for done in collected.completions]
    return {"rollout/top_opening_share": top_opening_share(replies), "rollout/distinct_2": distinct(replies, 2)}
