"""`rlhf score`: what a reward model, or any sequence classifier, says of texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import stdout
from rlhf_lightning.errors import DataError

if TYPE_CHECKING:
    from rlhf_lightning.models.classifier import TextScore

STDIN = "-"


def main(argv: Sequence[str]) -> int:
    """Scores the texts and prints logits, probabilities and reward of each."""
    arguments = parser().parse_args(list(argv))
    texts = read_texts(arguments.texts)
    # Here and not above: this import brings torch, and --help must not wait for it.
    from rlhf_lightning.models.classifier import score_texts

    scores = score_texts(arguments.model, texts, arguments.positive_label)
    if arguments.json:
        sys.stdout.writelines(json.dumps(asdict(score), ensure_ascii=False) + "\n" for score in scores)
    else:
        show_scores(scores)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of `rlhf score`."""
    arguments = argparse.ArgumentParser(prog="rlhf score", description=__doc__, allow_abbrev=False)
    arguments.add_argument("texts", nargs="+", metavar="TEXT", help="texts to score; - reads one a line from stdin")
    arguments.add_argument("--model", required=True, metavar="DIR", help="a reward model's directory, or a hub id")
    arguments.add_argument(
        "--positive-label",
        metavar="LABEL",
        help="the label whose logit is the reward, by name (of a model with several)",
    )
    arguments.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return arguments


def read_texts(given: Sequence[str]) -> list[str]:
    """The texts to score, `-` replaced by the lines of standard input.

    Raises:
        DataError: if there are none.
    """
    texts: list[str] = []
    for text in given:
        texts += [line for line in sys.stdin.read().splitlines() if line.strip()] if text == STDIN else [text]
    if not texts:
        raise DataError("There is no text to score.", where="standard input", fix="write one text a line")
    return texts


def show_scores(scores: Sequence[TextScore]) -> None:
    """Prints a table: one row a text, one column a label."""
    table = Table(box=None, pad_edge=False)
    table.add_column("text", overflow="fold")
    labels = list(scores[0].logits)
    for label in labels:
        table.add_column(f"logit {label}", justify="right")
        table.add_column(f"probability {label}", justify="right")
    table.add_column("reward", justify="right")
    for score in scores:
        figures = [f"{figures[label]:.3f}" for label in labels for figures in (score.logits, score.probabilities)]
        table.add_row(Text(score.text), *figures, f"{score.reward:.3f}")
    stdout().print(table)
