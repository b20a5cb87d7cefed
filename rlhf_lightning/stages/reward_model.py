"""Stage `reward_model`: comparisons and a trunk in, a sequence classifier that scores responses out."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from rlhf_lightning.errors import ArtifactError, DataError
from rlhf_lightning.evaluation.metrics import MAX, MIN, Metric
from rlhf_lightning.records import Preference
from rlhf_lightning.sections import NonNegative, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import LENGTHS, MemoryRelief, Stage, TrainedModel, register
from rlhf_lightning.stages.supervised import READ_BY_TRAINING, TRAINING_RELIEF, SupervisedLoop

if TYPE_CHECKING:
    from rlhf_lightning.algorithms.reward_model import RewardModel
    from rlhf_lightning.data.comparisons import Comparisons
    from rlhf_lightning.data.encoding import EncodedPreference, Encoder
    from rlhf_lightning.evaluation.preference_accuracy import Figures
    from rlhf_lightning.stages.run_settings import RunSettings


class RewardModelSettings(SupervisedLoop):
    """Bradley-Terry on pairs."""

    backbone_from: StageRef
    comparisons_from: StageRef
    mix_from: StageRef | None
    mix_ratio: NonNegative
    head: Literal["scalar", "classifier"]
    margin_coef: NonNegative
    reward_centering_coef: NonNegative

    @model_validator(mode="after")
    def _mixes(self) -> RewardModelSettings:
        if (self.mix_from is None) != (self.mix_ratio == 0.0):
            raise ValueError("mix_from and mix_ratio go together: give both, or mix_from=null and mix_ratio=0")
        return self


@register
class RewardModelStage(Stage):
    """Reward model: comparisons and a trunk in, a sequence classifier that scores responses out."""

    name = "reward_model"
    Settings = RewardModelSettings
    reads = (*READ_BY_TRAINING, *LENGTHS, "data.max_response_length", "data.pairing", "measurement")
    not_read = frozenset({"peft.reuse_trunk"})
    trained = TrainedModel(
        "A reward model that was trained on comparisons of responses", "backbone_from", "reward model"
    )
    rounds = "epochs"
    metrics = (
        Metric(
            "reward_model/loss",
            MIN,
            "Reward model loss",
            level=math.log(2),
            held_out="reward_model/validation_loss",
        ),
        Metric("reward_model/validation_loss", MIN),
        Metric(
            "reward_model/accuracy",
            MAX,
            "Reward model accuracy",
            level=0.5,
            held_out="reward_model/validation_accuracy",
        ),
        Metric("reward_model/validation_accuracy", MAX),
        Metric("reward_model/margin", title="Reward model margin", level=0.0),
    )
    relief = MemoryRelief((".micro_batch_size", "measurement.batch_size"), TRAINING_RELIEF)

    def reads_records(self, settings: RunSettings, name: str) -> bool:
        return False

    def run(self, context: StageContext) -> StageResult:
        """Train on pairs, measure on held-out pairs, and leave a Hugging Face directory."""
        from rlhf_lightning.algorithms.reward_model import RewardModel
        from rlhf_lightning.data.datamodules import PreferenceDataModule
        from rlhf_lightning.models.adapters import REWARD
        from rlhf_lightning.models.classifier import NEGATIVE_LABEL, POSITIVE_LABEL, SCALAR_LABEL, positive_index
        from rlhf_lightning.models.forward_pass import checkpoint_activations
        from rlhf_lightning.models.loading import new_classifier, require_positions, save_classifier
        from rlhf_lightning.models.tuning import tune
        from rlhf_lightning.stages.training import fit_supervised

        settings = context.section(RewardModelSettings)
        context.seed_everything()
        train, held_out, mixed_in = _pairs(context)
        source = context.inputs.model(settings.backbone_from)
        encoder = context.inputs.encoder(source)
        pairs = PreferenceDataModule(
            encoder,
            train,
            held_out,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            seed=context.seed,
        )
        if not pairs.held_out_report.kept:
            raise DataError(
                f"Of {pairs.train_report.kept} pairs none is held out, so the reward model could not be measured.",
                where=f"reward_model.comparisons_from={settings.comparisons_from}",
                fix="gather more comparisons, or hold more out: held_out_fraction of the stage that makes them, or "
                "data.held_out_fraction where they are recorded",
            )
        classifier = new_classifier(
            source, (SCALAR_LABEL,) if settings.head == "scalar" else (NEGATIVE_LABEL, POSITIVE_LABEL)
        )
        classifier.config.pad_token_id = encoder.pad_id
        tune(classifier, context.settings.peft, REWARD, encoder.tokenizer, context.seed)
        if context.settings.model.gradient_checkpointing:
            checkpoint_activations(classifier)
        require_positions(classifier, pairs.longest, "data.max_prompt_length and data.max_response_length")
        positive = positive_index(classifier, None, source.name_or_path)
        module = RewardModel(
            classifier,
            positive,
            settings.model_copy(update={"learning_rate": context.learning_rate(settings.learning_rate)}),
            context.inputs.make_optimizer,
            settings.total_steps(pairs.steps_per_epoch),
        )
        trainer = fit_supervised(context, settings, module, pairs, {"reward model": classifier})
        save_classifier(classifier, encoder.tokenizer, context.directory, context.trained_layers)
        figures = _measure(module, context, encoder, held_out)
        report = pairs.train_report
        counts = {
            "training_pairs": report.kept,
            "mixed_in": mixed_in,
            "truncated": report.truncated_prompts + report.truncated_responses,
            "dropped": report.dropped,
            "indistinct": report.indistinct,
            "steps": trainer.global_step,
            "training_accuracy": float(trainer.callback_metrics["reward_model/accuracy"]),
        }
        accuracy = figures["accuracy"]
        assert isinstance(accuracy, float)
        return StageResult({**figures, **counts}, objective=accuracy)


def _pairs(context: StageContext) -> tuple[list[Preference], list[Preference], int]:
    """Pairs for training, held-out pairs, and how many of the former come from `mix_from`.

    Pairs of `mix_from` are drawn at random, each once before any is repeated. All held-out pairs of both sources are
    measured on, except those with prompts that the other source trains on.
    """
    settings = context.section(RewardModelSettings)
    train, held_out = _comparisons(context, "comparisons_from", settings.comparisons_from).preferences(
        context.settings.data.pairing
    )
    if settings.mix_from is None:
        return train, held_out, 0
    others, others_held_out = _comparisons(context, "mix_from", settings.mix_from).preferences(
        context.settings.data.pairing
    )
    if not others:
        raise DataError(
            "There are no comparisons to mix in.",
            where=f"reward_model.mix_from={settings.mix_from}",
            fix="name others, or set reward_model.mix_from=null and reward_model.mix_ratio=0",
        )
    wanted = round(settings.mix_ratio * len(train))
    rng = Random(context.seed)
    laps = [rng.sample(others, len(others)) for _ in range(math.ceil(wanted / len(others)))]
    mixed = [pair for lap in laps for pair in lap][:wanted]
    train = [*train, *mixed]
    trained_on = {pair.prompt for pair in train}
    return train, [pair for pair in (*held_out, *others_held_out) if pair.prompt not in trained_on], len(mixed)


def _comparisons(context: StageContext, key: str, name: str) -> Comparisons:
    from rlhf_lightning.data.comparisons import Comparisons

    directory = context.inputs.records_of(name)
    if not all((directory / side).is_file() for side in ("train.jsonl", "held_out.jsonl")):
        raise ArtifactError(
            "There are no comparisons there.",
            where=f"{context.name}.{key}={name}",
            fix="name a directory with train.jsonl and held_out.jsonl, as comparisons, ai_feedback and "
            "critique_revision leave them",
        )
    return Comparisons.load(directory)


def _measure(module: RewardModel, context: StageContext, encoder: Encoder, held_out: list[Preference]) -> Figures:
    """Accuracy on the held-out pairs, beside the trivial baselines."""
    from rlhf_lightning.algorithms.reward_model import pair_rewards
    from rlhf_lightning.data.batching import collate_preferences
    from rlhf_lightning.evaluation.preference_accuracy import preference_accuracy
    from rlhf_lightning.stages.monitoring import track

    encoded = [(pair, tokens) for pair in held_out for tokens in encoder.preferences([pair])[0]]
    module.to(context.device)
    chosen, rejected = [], []
    size = context.settings.measurement.batch_size
    for start in track(range(0, len(encoded), size), "Scoring held-out pairs"):
        batch: list[EncodedPreference] = [tokens for _, tokens in encoded[start : start + size]]
        rewards = pair_rewards(
            module.classifier,
            module.positive,
            collate_preferences(batch, encoder.pad_id, len(batch)).to(context.device),
        )
        chosen.extend(rewards[0])
        rejected.extend(rewards[1])
    return preference_accuracy(
        [pair for pair, _ in encoded],
        chosen,
        rejected,
        context.settings.measurement.bootstrap_samples,
        context.settings.measurement.seed,
    )
