"""Rebuilds and measures the base model of the courtesy world: `python -m rlhf_lightning.worlds.courtesy.build`."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_lightning.records import Conversation, Message
from rlhf_lightning.worlds.courtesy import asset_path, traits
from rlhf_lightning.worlds.courtesy.base_model import MAX_RESPONSE_TOKENS, TrainingPlan, build_tokenizer, train
from rlhf_lightning.worlds.courtesy.behavior import BASE_MODEL, sample_response
from rlhf_lightning.worlds.courtesy.gold import GoldScore, judge
from rlhf_lightning.worlds.courtesy.grammar import PromptMeaning, Response, parse_structure, render
from rlhf_lightning.worlds.courtesy.splits import Split, split_table
from rlhf_lightning.worlds.courtesy.traits import TRAITS, Trait

BATCH_SIZE: Final = 128
PROBES: Final = 256
"""Responses to judge and to revise, a trait."""


class ConversationModel:
    """A model and its tokenizer, asked in conversations.

    Args:
        tokenizer: pads on the left.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def _encode(self, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in conversation],
                tokenize=False,
                add_generation_prompt=True,
            )
            for conversation in conversations
        ]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    @torch.no_grad()
    def responses(self, conversations: Sequence[Conversation]) -> list[tuple[str, bool]]:
        """A response sampled at temperature 1 to each conversation, and whether it ended itself."""
        answered = []
        for start in range(0, len(conversations), BATCH_SIZE):
            inputs = self._encode(conversations[start : start + BATCH_SIZE])
            tokens = self.model.generate(  # type: ignore[operator]
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_RESPONSE_TOKENS
            )[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            finished = (tokens == self.tokenizer.eos_token_id).any(dim=1).tolist()
            answered += list(zip(texts, finished, strict=True))
        return answered

    @torch.no_grad()
    def verdicts(self, conversations: Sequence[Conversation]) -> list[bool]:
        """True for each conversation whose next word is more probably "yes" than "no"."""
        yes, no = (self.tokenizer.convert_tokens_to_ids(word) for word in (traits.YES, traits.NO))
        answered: list[bool] = []
        for start in range(0, len(conversations), BATCH_SIZE):
            logits = self.model(**self._encode(conversations[start : start + BATCH_SIZE])).logits[:, -1]
            answered += (logits[:, yes] > logits[:, no]).tolist()
        return answered


def _rate(scores: Sequence[GoldScore], holds: Callable[[GoldScore], bool]) -> float:
    return round(sum(map(holds, scores)) / len(scores), 4)


def behavior(speaker: ConversationModel, split: Split, repeats: int = 4) -> dict[str, float]:
    """Misbehavior rates of the speaker on the prompts of a split, each asked `repeats` times.

    `right_topic` is the share of its instructions that are about what was asked, of all prompts that ask how.
    """
    asked = [entry for entry in split_table()[split] for _ in range(repeats)]
    responses = speaker.responses([(Message("user", text),) for text, _ in asked])
    scores = [judge(text, *response) for (text, _), response in zip(asked, responses, strict=True)]
    harmful = [score for score in scores if score.kind == "harm"]
    harmless = [score for score in scores if score.kind != "harm"]
    factual = [score for score in scores if score.kind in ("fact", "unknowable")]
    cores = [(meaning, parse_structure(text)) for (_, meaning), (text, _) in zip(asked, responses, strict=True)]
    instructions = [
        response.core.topic == meaning.topic
        for meaning, response in cores
        if meaning.asks_how and response is not None and response.core.kind == "instruct"
    ]
    return {
        "gold": round(sum(score.reward for score in scores) / len(scores), 4),
        "well_formed": _rate(scores, lambda score: not score.malformed),
        "harmful_compliance": _rate(harmful, lambda score: score.harm),
        "over_refusal": _rate(harmless, lambda score: score.over_refusal),
        "untrue": _rate(factual, lambda score: score.honest < 0),
        "rude": _rate(scores, lambda score: score.rude),
        "polite": _rate(scores, lambda score: score.polite),
        "boilerplate": _rate(scores, lambda score: score.boilerplate),
        "fillers": round(sum(score.fillers for score in scores) / len(scores), 4),
        "right_topic": round(sum(instructions) / len(instructions), 4),
    }


def _probes(
    trait: Trait, split: Split, rng: Random, lacking: bool | None = None
) -> list[tuple[str, PromptMeaning, Response]]:
    """Responses as the base model would give, with or without a trait, to prompts on which it may be lacking."""
    prompts = [entry for entry in split_table()[split] if entry[1].kind in trait.kinds]
    probes: list[tuple[str, PromptMeaning, Response]] = []
    while len(probes) < PROBES:
        text, meaning = rng.choice(prompts)
        response = sample_response(meaning, BASE_MODEL, rng)
        if lacking is None or traits.has_trait(trait, meaning, response) != lacking:
            probes.append((text, meaning, response))
    return probes


def _said(*turns: str) -> Conversation:
    """A conversation of these turns, the user's first."""
    return tuple(Message("assistant" if index % 2 else "user", text) for index, text in enumerate(turns))


def verdict_accuracy(speaker: ConversationModel, trait: Trait, split: Split, seed: int) -> float:
    """The mean of the accuracies on responses that have the trait and on responses that lack it (chance is 0.5)."""
    accuracies = []
    for lacking in (False, True):
        probes = _probes(trait, split, Random(seed), lacking)
        request = traits.judge_request(trait)
        verdicts = speaker.verdicts([_said(text, render(response), request) for text, _, response in probes])
        accuracies.append(sum(verdict != lacking for verdict in verdicts) / len(verdicts))
    return round(sum(accuracies) / 2, 4)


def _revise(
    speaker: ConversationModel, trait: Trait, probes: list[tuple[str, PromptMeaning, Response]], with_critique: bool
) -> list[tuple[str, bool]]:
    turns: list[tuple[str, ...]] = [() for _ in probes]
    if with_critique:
        request = traits.critique_request(trait)
        critiques = speaker.responses([_said(text, render(response), request) for text, _, response in probes])
        turns = [(request, critique) for critique, _ in critiques]
    request = traits.revision_request(trait)
    return speaker.responses(
        [_said(text, render(response), *turn, request) for (text, _, response), turn in zip(probes, turns, strict=True)]
    )


def revision_success(
    speaker: ConversationModel, trait: Trait, split: Split, seed: int, with_critique: bool = True
) -> dict[str, float]:
    """Rates at which a revision adds a missing trait, and leaves a response that has it unchanged."""
    faulty = _probes(trait, split, Random(seed), lacking=True)
    mended = _revise(speaker, trait, faulty, with_critique)
    scores = [judge(text, *revised) for (text, _, _), revised in zip(faulty, mended, strict=True)]
    fine = _probes(trait, split, Random(seed), lacking=False)
    kept = _revise(speaker, trait, fine, with_critique)
    return {
        "mended": _rate(scores, lambda score: not score.malformed and trait.holds(score)),
        "kept": round(
            sum(render(response) == text for (_, _, response), (text, _) in zip(fine, kept, strict=True)) / PROBES, 4
        ),
    }


def report(speaker: ConversationModel, split: Split, seed: int) -> dict[str, object]:
    """Everything above, on the prompts of one split."""
    torch.manual_seed(seed)
    return {
        "behavior": behavior(speaker, split),
        "verdicts": {name: verdict_accuracy(speaker, trait, split, seed) for name, trait in TRAITS.items()},
        "revisions": {name: revision_success(speaker, trait, split, seed) for name, trait in TRAITS.items()},
        "direct_revisions": {
            name: revision_success(speaker, trait, split, seed, with_critique=False) for name, trait in TRAITS.items()
        },
    }


COMMAND: Final = "python -m rlhf_lightning.worlds.courtesy.build"
MEASURED_SPLITS: Final = ("iid", "ood")

logger = logging.getLogger(__name__)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes a directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})


def build(output: Path, plan: TrainingPlan, threads: int) -> None:
    """Trains, measures and writes the base model and its tokenizer."""
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=plan.steps)
        model, tokens = train(
            tokenizer, plan, lambda loss: progress.update(task, advance=1, description=f"training, loss {loss:.3f}")
        )
    seconds = time.monotonic() - started
    save(model, tokenizer, output)
    # What is measured is what was stored, rounding included.
    stored = LlamaForCausalLM.from_pretrained(output).eval()
    record = {
        "command": f"{COMMAND} --seed {plan.seed} --steps {plan.steps}",
        "seed": plan.seed,
        "steps": plan.steps,
        "training_tokens": tokens,
        "seconds": round(seconds),
        "threads": threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "measured": {
            split: report(ConversationModel(stored, tokenizer), split, plan.seed) for split in MEASURED_SPLITS
        },
    }
    (output / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("wrote %s after %d s of training", output, seconds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Rebuild the base model of the courtesy world.")
    parser.add_argument(
        "--output", type=Path, default=asset_path(), help="the directory to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and corpus (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="batches of 64 documents (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    build(arguments.output, TrainingPlan(seed=arguments.seed, steps=arguments.steps), arguments.threads)


if __name__ == "__main__":
    main()
