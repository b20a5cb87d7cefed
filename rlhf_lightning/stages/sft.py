"""Stages `sft` and `revision_sft`: demonstrations and a base model in, a policy that imitates them out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.evaluation.metrics import MIN, Metric
from rlhf_lightning.records import Demonstration
from rlhf_lightning.sections import OpenFraction, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import FROM_DATA, LENGTHS, MemoryRelief, Stage, TrainedModel, register
from rlhf_lightning.stages.supervised import READ_BY_TRAINING, TRAINING_RELIEF, SupervisedLoop

if TYPE_CHECKING:
    from rlhf_lightning.stages.run_settings import RunSettings


class SftSettings(SupervisedLoop):
    """Supervised fine-tuning on demonstrations."""

    policy_from: StageRef
    demonstrations_from: StageRef
    held_out_fraction: OpenFraction


@register
class Sft(Stage):
    """Supervised fine-tuning: demonstrations and a base model in, a policy that imitates them out."""

    name = "sft"
    Settings = SftSettings
    reads = (
        *(*READ_BY_TRAINING, *LENGTHS, "data.kind", "data.max_response_length"),
        *("data.demonstrations", "data.demonstrator"),
    )
    not_read = frozenset({"peft.reuse_trunk"})
    trained = TrainedModel("A language model that was fine-tuned on demonstrations", started_from="policy_from")
    rounds = "epochs"
    metrics = (
        Metric("sft/loss", MIN, "SFT loss", "nats a token", held_out="sft/validation_loss"),
        Metric("sft/validation_loss", MIN),
    )
    relief = MemoryRelief((".micro_batch_size",), TRAINING_RELIEF)

    def reads_records(self, settings: RunSettings, name: str) -> bool:
        return cast(SftSettings, settings.section(name)).demonstrations_from == FROM_DATA

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        made = isinstance(settings.data, CourtesyData) and self.reads_records(settings, name)
        return frozenset() if made else frozenset({"data.demonstrations", "data.demonstrator"})

    def run(self, context: StageContext) -> StageResult:
        """Fine-tune on demonstrations and leave a Hugging Face directory."""
        from rlhf_lightning.algorithms.sft import SupervisedFineTuning
        from rlhf_lightning.data.datamodules import DemonstrationDataModule
        from rlhf_lightning.models.adapters import POLICY
        from rlhf_lightning.models.forward_pass import checkpoint_activations
        from rlhf_lightning.models.loading import load_policy, require_positions, save_policy
        from rlhf_lightning.models.tuning import tune
        from rlhf_lightning.stages.training import fit_supervised

        settings = context.section(SftSettings)
        context.seed_everything()
        source = context.inputs.model(settings.policy_from)
        encoder = context.inputs.encoder(source)
        demonstrations = DemonstrationDataModule(
            encoder,
            _demonstrations(context, settings.demonstrations_from),
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            validation_fraction=settings.held_out_fraction,
            seed=context.seed,
        )
        policy = load_policy(source)
        tune(policy, context.settings.peft, POLICY, encoder.tokenizer, context.seed)
        if context.settings.model.gradient_checkpointing:
            checkpoint_activations(policy)
        require_positions(policy, demonstrations.longest, "data.max_prompt_length and data.max_response_length")
        module = SupervisedFineTuning(
            policy,
            settings.model_copy(update={"learning_rate": context.learning_rate(settings.learning_rate)}),
            context.inputs.make_optimizer,
            settings.total_steps(demonstrations.steps_per_epoch),
        )
        trainer = fit_supervised(context, settings, module, demonstrations, {"policy": policy})
        save_policy(policy, encoder.tokenizer, context.directory, context.trained_layers)
        report = demonstrations.train_report
        metrics = {
            "demonstrations": report.kept,
            "truncated": report.truncated_prompts + report.truncated_responses,
            "dropped": report.dropped,
            "steps": trainer.global_step,
            "loss": float(trainer.callback_metrics["sft/loss"]),
        }
        held_out = trainer.callback_metrics.get("sft/validation_loss")
        if held_out is None:
            return StageResult(metrics, objective=-metrics["loss"])
        metrics |= {"validation_loss": float(held_out), "validation_perplexity": math.exp(min(float(held_out), 50.0))}
        return StageResult(metrics, objective=-float(held_out))


def _demonstrations(context: StageContext, name: str) -> list[Demonstration]:
    """The data's demonstrations, or those that another stage left.

    Raises:
        ArtifactError: there are none.
    """
    from rlhf_lightning.data.sources import DEMONSTRATIONS, read_demonstrations

    if name == FROM_DATA:
        return context.inputs.data.demonstrations()
    directory = context.inputs.records_of(name)
    if not (directory / DEMONSTRATIONS).is_file():
        raise ArtifactError(
            "There are no demonstrations there.",
            where=f"{context.name}.demonstrations_from={name}",
            fix=f"name a directory with {DEMONSTRATIONS}, as stage critique_revision leaves it, or `data`",
        )
    return read_demonstrations(directory)
