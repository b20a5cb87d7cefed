"""The courtesy world: a small language whose true reward is known, so alignment and reward hacking can be measured.

Importing this package does not import torch.
"""

from pathlib import Path

from rlhf_lightning.worlds.courtesy.behavior import demonstrations
from rlhf_lightning.worlds.courtesy.gold import Annotator, GoldScore, best_response, best_reward, judge
from rlhf_lightning.worlds.courtesy.grammar import parse_prompt
from rlhf_lightning.worlds.courtesy.splits import SPLITS, prompts
from rlhf_lightning.worlds.courtesy.traits import TRAITS, Trait

__all__ = [
    "SPLITS",
    "TRAITS",
    "Annotator",
    "GoldScore",
    "Trait",
    "asset_path",
    "best_response",
    "best_reward",
    "demonstrations",
    "judge",
    "parse_prompt",
    "prompts",
]


def asset_path() -> Path:
    """The directory of the badly behaved base model and its tokenizer, as `from_pretrained` reads it."""
    return Path(__file__).parent / "assets"
