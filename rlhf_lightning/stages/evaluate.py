"""Stage `evaluate`: the starting policy and the trained ones, on the same fixed prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Prompt
from rlhf_lightning.sections import Count, Name, Named, Positive, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import JUDGE, LENGTHS, OF_CRITIQUES, MemoryRelief, Stage, StageSection, register

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_lightning.evaluation.summary import SampleRow
    from rlhf_lightning.feedback.labeling import Labeler
    from rlhf_lightning.rollouts.sampler import SampledResponse, Samples
    from rlhf_lightning.stages.run_settings import RunSettings

OBJECTIVE_SPLIT = "validation"
"""Split on which a sweep's objective is measured, if the data has it, so that the reported splits stay unseen."""


class EvaluateSettings(StageSection):
    """The starting policy and the trained ones on the same fixed prompts."""

    policies: Annotated[list[Name], Field(min_length=1), Named("stage", shown=True)]
    reference_from: StageRef
    reward_from: StageRef | None
    splits: Annotated[list[Name], Field(min_length=1)] | None
    prompts: Annotated[int, Field(ge=2)]
    temperature: Positive
    sample_table: Count
    satisfaction: Count | None


@register
class EvaluateStage(Stage):
    """Evaluation: policies, a reference and a reward model in, figures with intervals and samples out."""

    name = "evaluate"
    Settings = EvaluateSettings
    # Not the run's seed: `measurement` has one of its own, the same in every run.
    reads = (*JUDGE, "measurement", "rollout.max_new_tokens", *LENGTHS, "data.kind")
    not_read = OF_CRITIQUES
    relief = MemoryRelief(("measurement.batch_size",), ("rollout.max_new_tokens", "data.max_prompt_length"))

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        asks = cast(EvaluateSettings, settings.section(name)).satisfaction is not None
        return frozenset() if asks else frozenset(JUDGE)

    def run(self, context: StageContext) -> StageResult:
        """Measure every policy on every split and leave figures and a table of samples."""
        from rlhf_lightning.evaluation.summary import SAMPLES_FILE, short_name, write_samples
        from rlhf_lightning.stages.judging import open_labeler

        settings = context.section(EvaluateSettings)
        splits = evaluation_prompts(context)
        answers: dict[str, dict[str, Answers]] = {}
        for name in settings.policies:
            probe = PolicyProbe(context, name)
            answers[name] = {split: probe.answers(split, prompts) for split, prompts in splits.items()}
        evaluation = {
            name: {split: policy_figures(context, said) for split, said in by_split.items()}
            for name, by_split in answers.items()
        }
        if settings.satisfaction is not None:
            labeler = open_labeler(context)
            for name, by_split in answers.items():
                for split, said in by_split.items():
                    evaluation[name][split] |= judged_figures(context, labeler, said.responses[: settings.satisfaction])
        for number, name in enumerate(settings.policies):
            write_answers(answers[name], context.directory / f"{number}_{short_name(name).replace('/', '_')}.jsonl")
        rows = sample_rows(context, answers[settings.policies[0]], answers[settings.policies[-1]])
        write_samples(rows, context.inputs.run.path / SAMPLES_FILE)
        context.tracker.log_samples(rows)
        counts = {"prompts": {split: len(prompts) for split, prompts in splits.items()}}
        objective = _objective(evaluation[settings.policies[-1]])
        return StageResult(counts, objective, evaluation, rows)


@dataclass(frozen=True, slots=True)
class Answers:
    """A policy's responses on a split.

    Attributes:
        kl: per response, summed over its tokens, in nats.
        entropy: mean of -log p over tokens, in nats.
        proxy: reward model score per response; None without a reward model.
    """

    responses: tuple[SampledResponse, ...]
    kl: list[float]
    entropy: float
    proxy: list[float] | None


def evaluation_prompts(context: StageContext) -> dict[str, list[Prompt]]:
    """Prompts of each split, drawn with the evaluation's own seed: the same for every run.

    Raises:
        DataError: the data has no such split.
    """
    settings = context.section(EvaluateSettings)
    available = context.inputs.data.evaluation_prompts()
    for split in settings.splits or ():
        if split not in available:
            raise DataError(
                f"The data has no split {split!r}.", where="evaluate.splits", fix=f"use some of {', '.join(available)}"
            )
    return {
        split: Random(f"{context.settings.measurement.seed}:{split}").sample(
            prompts, min(settings.prompts, len(prompts))
        )
        for split, prompts in available.items()
        if settings.splits is None or split in settings.splits
    }


class PolicyProbe:
    """A policy, the reference it is compared with, and the reward model that scores it.

    Args:
        name: of the policy, as the config names it.
    """

    def __init__(self, context: StageContext, name: str) -> None:
        from rlhf_lightning.models.loading import load_policy
        from rlhf_lightning.models.reference import FrozenReference
        from rlhf_lightning.rollouts.sampler import Sampler
        from rlhf_lightning.stages.rewards import open_reward_model

        settings = context.section(EvaluateSettings)
        source = context.inputs.model(name)
        self.name = name
        self.settings = settings
        self.batch_size = context.settings.measurement.batch_size
        self.encoder = context.inputs.encoder(source)
        self.policy = load_policy(source, context.device)
        self.reference = FrozenReference(load_policy(context.inputs.model(settings.reference_from), context.device))
        self.scorer = open_reward_model(context, settings.reward_from, self.encoder) if settings.reward_from else None
        self.sampler = Sampler(
            self.policy,
            self.encoder.tokenizer,
            temperature=settings.temperature,
            max_new_tokens=context.settings.rollout.max_new_tokens,
            seed=context.settings.measurement.seed,
        )

    def answers(self, split: str, prompts: Sequence[Prompt]) -> Answers:
        """The policy's responses to the prompts of a split; the same on every call."""
        from rlhf_lightning.stages.monitoring import track

        encoded, _ = self.encoder.prompts(prompts)
        if not encoded:
            raise DataError(
                f"All prompts of split {split} are over-long and were dropped.",
                where="data.on_long_record=drop",
                fix="raise data.max_prompt_length, or set data.on_long_record=truncate",
            )
        responses: list[SampledResponse] = []
        kl: list[float] = []
        surprise: list[float] = []
        proxy: list[float] = []
        size = self.batch_size
        for start in track(range(0, len(encoded), size), f"Evaluating {self.name} on {split}"):
            samples = self.sampler.sample(encoded[start : start + size], range(len(encoded))[start : start + size])
            responses.extend(samples.responses)
            divergence, negative_logprob = self._measure(samples)
            kl.extend(divergence.tolist())
            surprise.extend(negative_logprob.tolist())
            if self.scorer is not None:
                proxy.extend(self.scorer.score(samples.responses).tolist())
        tokens = sum(len(response.response_ids) for response in responses)
        return Answers(
            responses=tuple(responses),
            kl=kl,
            entropy=sum(surprise) / tokens,
            proxy=proxy if self.scorer is not None else None,
        )

    def _measure(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Per response, summed over its tokens: log pi - log pi_ref, and -log pi; both (batch,)."""
        import torch

        from rlhf_lightning.models.actor_critic import response_logits
        from rlhf_lightning.objectives.kl import k1
        from rlhf_lightning.objectives.logprobs import token_logprobs
        from rlhf_lightning.objectives.masked_stats import sequence_sums

        mask, temperature = samples.response_mask, self.settings.temperature
        length = mask.shape[1]
        with torch.no_grad():
            logits, _ = response_logits(self.policy, samples.sequences, samples.attention_mask, length)
            logprobs = token_logprobs(logits, samples.response_ids, temperature)
            reference = self.reference.logprobs(samples.sequences, samples.attention_mask, length, temperature)
        return sequence_sums(k1(logprobs, reference), mask), sequence_sums(-logprobs, mask)


def policy_figures(context: StageContext, answers: Answers) -> dict[str, Any]:
    """Everything that is measured of a policy on a split, with bootstrap 95% intervals."""
    from rlhf_lightning.evaluation.responses import gold_figures, text_statistics
    from rlhf_lightning.evaluation.statistics import bootstrap_mean

    samples, seed = context.settings.measurement.bootstrap_samples, context.settings.measurement.seed
    responses = answers.responses
    finished = [response.finished for response in responses]
    figures: dict[str, Any] = {}
    if isinstance(context.settings.data, CourtesyData):
        prompts = [response.prompt for response in responses]
        texts = [response.text for response in responses]
        figures |= gold_figures(prompts, texts, finished, samples, seed)
    if answers.proxy is not None:
        proxy = bootstrap_mean(answers.proxy, samples, seed)
        figures |= {"proxy_reward": proxy.mean, "proxy_reward_ci": proxy.interval}
    kl = bootstrap_mean(answers.kl, samples, seed)
    figures |= {"kl": kl.mean, "kl_ci": kl.interval, "entropy": answers.entropy}
    own_tokens = [done.response_ids[:-1] if done.finished else done.response_ids for done in responses]
    return figures | text_statistics(own_tokens, finished, samples, seed)


def judged_figures(context: StageContext, labeler: Labeler, responses: Sequence[SampledResponse]) -> dict[str, Any]:
    """Satisfaction of each principle of the constitution by the responses, according to the judge.

    Returns:
        `satisfaction`: by the principle's id, the mean probability of yes over the responses that it applies to and
        that the judge answered for; `satisfaction_ci`, its bootstrap 95% interval; `satisfaction_count`, how many
        responses.
    """
    from rlhf_lightning.evaluation.statistics import bootstrap_mean

    data, measurement = context.inputs.data, context.settings.measurement
    rated = labeler.follows([(done.prompt, done.text, data.kind_of(done.prompt)) for done in responses])
    figures: dict[str, dict[str, Any]] = {"satisfaction": {}, "satisfaction_ci": {}, "satisfaction_count": {}}
    for principle in context.settings.constitution.principles:
        given = [value for one in rated if (value := one.get(principle.id)) is not None]
        if given:
            estimate = bootstrap_mean(given, measurement.bootstrap_samples, measurement.seed)
            figures["satisfaction"][principle.id] = estimate.mean
            figures["satisfaction_ci"][principle.id] = estimate.interval
            figures["satisfaction_count"][principle.id] = estimate.count
    return figures


def write_answers(by_split: dict[str, Answers], path: Path) -> None:
    """Every response of a policy with its KL and proxy reward, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for split, said in by_split.items():
            for row, done in enumerate(said.responses):
                line = {
                    "split": split,
                    "prompt": done.prompt.plain(),
                    "response": done.text,
                    "finished": done.finished,
                    "kl": said.kl[row],
                    "proxy": said.proxy[row] if said.proxy is not None else None,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def sample_rows(context: StageContext, before: dict[str, Answers], after: dict[str, Answers]) -> list[SampleRow]:
    """The first few prompts of each split, answered by the first policy and by the last."""
    from rlhf_lightning.evaluation.summary import SampleRow

    per_split = max(1, context.section(EvaluateSettings).sample_table // len(before))
    courtesy = isinstance(context.settings.data, CourtesyData)
    rows = []
    for split in before:
        pairs = zip(before[split].responses, after[split].responses, strict=True)
        for row, (old, new) in enumerate(list(pairs)[:per_split]):
            old_proxy, new_proxy = before[split].proxy, after[split].proxy
            rows.append(
                SampleRow(
                    split=split,
                    prompt=old.prompt.plain(),
                    before=old.text,
                    after=new.text,
                    proxy_before=old_proxy[row] if old_proxy is not None else None,
                    proxy_after=new_proxy[row] if new_proxy is not None else None,
                    gold_before=_gold(old) if courtesy else None,
                    gold_after=_gold(new) if courtesy else None,
                )
            )
    return rows


def _gold(response: SampledResponse) -> float:
    from rlhf_lightning.worlds.courtesy import judge

    return judge(response.prompt.last_turn, response.text, response.finished).reward


def _objective(by_split: dict[str, dict[str, Any]]) -> float | None:
    """Gold reward where it is known, else the proxy: on the validation split if there is one, else over all splits."""
    chosen = [by_split[OBJECTIVE_SPLIT]] if OBJECTIVE_SPLIT in by_split else list(by_split.values())
    for name in ("gold_reward", "proxy_reward"):
        if all(name in figures for figures in chosen):
            return float(sum(figures[name] for figures in chosen) / len(chosen))
    return None
