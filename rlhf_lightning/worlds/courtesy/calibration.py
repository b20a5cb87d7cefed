"""Records judgments to calibrate judges against: `python -m rlhf_lightning.worlds.courtesy.calibration`.

Run once; what it writes ships with the package, and runs only read it (`worlds.courtesy.recorded`). The prompts are
those of `validation`, the responses what the base model's kind of speaker would say, some of them broken. Chance alone
would leave few pairs that tell anything about, say, harm, which only harmful prompts bring up: so each pair is drawn
until its responses differ in the trait that the fewest pairs so far differ in.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from rich.logging import RichHandler

from rlhf_lightning.worlds.courtesy.behavior import BASE_MODEL, sample_response
from rlhf_lightning.worlds.courtesy.corpus import MALFORMED_SHARE, break_response
from rlhf_lightning.worlds.courtesy.gold import Annotator
from rlhf_lightning.worlds.courtesy.grammar import PromptMeaning, render
from rlhf_lightning.worlds.courtesy.lexicon import PromptKind
from rlhf_lightning.worlds.courtesy.recorded import TRAIT_NAMES, RecordedJudgment, recorded_path, write_judgments
from rlhf_lightning.worlds.courtesy.splits import as_prompt, split_table
from rlhf_lightning.worlds.courtesy.traits import TRAITS, has_trait
from rlhf_lightning.worlds.settings import AnnotatorSettings

COMMAND: Final = "python -m rlhf_lightning.worlds.courtesy.calibration"
PAIRS: Final = 400
SEED: Final = 20260201
ANNOTATOR: Final = AnnotatorSettings(
    length_bias=0.0, politeness_bias=0.0, boilerplate_bias=0.0, refusal_penalty=0.0, flip_rate=0.05
)
"""As careful as the annotators of `conf/data/courtesy.yaml`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Described:
    """A response, and the traits it has."""

    text: str
    traits: frozenset[str]


def _response(meaning: PromptMeaning, rng: Random) -> _Described:
    response = sample_response(meaning, BASE_MODEL, rng)
    text = render(response)
    if rng.random() < MALFORMED_SHARE:
        return _Described(break_response(text, rng), frozenset())
    return _Described(text, frozenset(name for name in TRAIT_NAMES if has_trait(TRAITS[name], meaning, response)))


def _in_turn(rng: Random) -> dict[PromptKind, Iterator[tuple[str, PromptMeaning]]]:
    """By kind, its prompts over and over, so that none comes a second time before all have come once."""

    def cycle(kind: PromptKind) -> Iterator[tuple[str, PromptMeaning]]:
        entries = [entry for entry in split_table()["validation"] if entry[1].kind == kind]
        while True:
            yield from rng.sample(entries, len(entries))

    return {kind: cycle(kind) for kind in {meaning.kind for _, meaning in split_table()["validation"]}}


def judge_pairs(pairs: int, seed: int) -> list[RecordedJudgment]:
    """So many judgments, in an order that mixes prompts and traits."""
    rng = Random(seed)
    prompts, annotator = _in_turn(rng), Annotator(ANNOTATOR)
    differing = Counter(dict.fromkeys(TRAIT_NAMES, 0))
    judgments = []
    for _ in range(pairs):
        wanted = min(TRAIT_NAMES, key=lambda name: differing[name])
        text, meaning = next(prompts[rng.choice(TRAITS[wanted].kinds)])
        first = second = _response(meaning, rng)
        while (wanted in first.traits) == (wanted in second.traits):
            first, second = _response(meaning, rng), _response(meaning, rng)
        differing.update(first.traits ^ second.traits)
        ranks = annotator.rank(text, (first.text, second.text), rng)
        judgments.append(
            RecordedJudgment(
                prompt=as_prompt(text),
                responses=(first.text, second.text),
                prefers_first=ranks[0] < ranks[1],
                traits={name: (name in first.traits, name in second.traits) for name in TRAIT_NAMES},
            )
        )
    rng.shuffle(judgments)
    return judgments


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Record judgments in the courtesy world.")
    parser.add_argument("--output", type=Path, default=recorded_path(), help="the file (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of responses (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    judgments = judge_pairs(arguments.pairs, arguments.seed)
    write_judgments(judgments, arguments.output)
    logger.info("wrote %d judgments to %s", len(judgments), arguments.output)


if __name__ == "__main__":
    main()
