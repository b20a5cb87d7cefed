"""What the suite trains on: fits of tiny models, and artifacts of random weights for runs of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fits import assert_same_weights, fit, fit_ppo, stepping
from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["artifacts", "assert_same_weights", "fit", "fit_ppo", "stepping", "without_plots"]


@pytest.fixture(autouse=True, scope="module")
def without_plots() -> Iterator[None]:
    """Drawing takes longer than the runs here. A patch of the session would reach the tests of other folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lightning.runs.pipeline.draw_plots", lambda *_: [])
        yield


@pytest.fixture(scope="session")
def artifacts(
    make_policy: Callable[..., PreTrainedModel],
    make_reward_model: Callable[..., PreTrainedModel],
    make_words: Callable[..., PreTrainedTokenizerFast],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with policies, rewards and classifiers, two or three each, and prompts.

    They have one block, `deep_policy` has two. Of the policies' tokens eleven end a response, so that about every
    second response of five tokens ends itself. The classifiers have the labels `bad`, `good` and `great`.
    """
    directory = tmp_path_factory.mktemp("artifacts")
    tokenizer = make_words()
    for name, seed, blocks in (("policy", 0, 1), ("other_policy", 1, 1), ("deep_policy", 0, 2)):
        policy = make_policy(seed=seed, num_hidden_layers=blocks)
        policy.generation_config.eos_token_id = [1, *range(40, 50)]
        policy.save_pretrained(directory / name)
    for name, seed in (("reward", 2), ("other_reward", 3), ("third_reward", 4)):
        make_reward_model(seed=seed, num_hidden_layers=1).save_pretrained(directory / name)
    for name, seed in (("classifier", 5), ("other_classifier", 6)):
        make_reward_model(seed=seed, labels=("bad", "good", "great"), num_hidden_layers=1).save_pretrained(
            directory / name
        )
    for model in directory.iterdir():
        tokenizer.save_pretrained(model)
    prompts = [" ".join(f"w{3 + (7 * number + place) % 37}" for place in range(1 + number % 4)) for number in range(24)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return directory
