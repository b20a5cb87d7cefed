"""What the suite trains on: fits of tiny models, and artifacts of random weights for runs of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fits import assert_same_weights, fit, fit_ppo, stepping
from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["artifacts", "assert_same_weights", "fit", "fit_ppo", "stepping"]


@pytest.fixture(scope="session")
def artifacts(
    make_policy: Callable[..., PreTrainedModel],
    make_reward_model: Callable[..., PreTrainedModel],
    make_words: Callable[..., PreTrainedTokenizerFast],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with models `policy`, `other_policy`, `reward`, `other_reward`, `classifier`, and prompts.

    Of the policies' tokens ten end a reply, so that about every second reply of five tokens ends itself. The
    classifier has the labels `bad`, `good` and `great`.
    """
    directory = tmp_path_factory.mktemp("artifacts")
    tokenizer = make_words()
    for name, seed in (("policy", 0), ("other_policy", 1)):
        policy = make_policy(seed=seed)
        policy.generation_config.eos_token_id = [1, *range(40, 50)]
        policy.save_pretrained(directory / name)
    for name, seed in (("reward", 2), ("other_reward", 3)):
        make_reward_model(seed=seed).save_pretrained(directory / name)
    make_reward_model(seed=4, labels=("bad", "good", "great")).save_pretrained(directory / "classifier")
    for model in ("policy", "other_policy", "reward", "other_reward", "classifier"):
        tokenizer.save_pretrained(directory / model)
    prompts = [" ".join(f"w{3 + (7 * number + place) % 37}" for place in range(1 + number % 4)) for number in range(24)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return directory
