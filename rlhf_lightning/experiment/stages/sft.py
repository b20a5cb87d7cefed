"""Stage `sft`: demonstrations and a base model in, a policy that imitates them out."""

from __future__ import annotations

import math

from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.data.datamodules import DemonstrationDataModule
from rlhf_lightning.experiment.memory.forecast import sft_footprint, update_shape
from rlhf_lightning.experiment.stage import StageContext, StageResult
from rlhf_lightning.experiment.training import fit_supervised
from rlhf_lightning.models.activation_checkpointing import checkpoint_activations
from rlhf_lightning.models.adapters import POLICY
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy, require_positions
from rlhf_lightning.models.saving import save_policy
from rlhf_lightning.models.tuning import tune


def run_sft(context: StageContext) -> StageResult:
    """Fine-tune on demonstrations and leave a Hugging Face directory."""
    settings = context.settings.sft
    context.seed_everything()
    source = context.inputs.model(settings.policy_from)
    encoder = context.inputs.encoder(source)
    demonstrations = DemonstrationDataModule(
        encoder,
        context.inputs.data.demonstrations(),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        validation_fraction=settings.held_out_fraction,
        seed=context.seed,
    )
    _forecast(context, source, demonstrations.longest)
    policy = load_policy(source)
    tune(policy, context.settings.peft, POLICY, encoder.tokenizer, context.seed)
    if context.settings.model.gradient_checkpointing:
        checkpoint_activations(policy)
    require_positions(policy, demonstrations.longest, "data.max_prompt_length and data.max_reply_length")
    module = SupervisedFineTuning(
        policy,
        settings.model_copy(update={"learning_rate": context.learning_rate(settings.learning_rate)}),
        context.inputs.make_optimizer,
        demonstrations.steps_per_epoch * settings.epochs,
    )
    trainer = fit_supervised(context, settings, module, demonstrations)
    save_policy(policy, encoder.tokenizer, context.directory, context.trained_layers)
    report = demonstrations.train_report
    metrics = {
        "demonstrations": report.kept,
        "truncated": report.truncated_prompts + report.truncated_replies,
        "dropped": report.dropped,
        "steps": trainer.global_step,
        "loss": float(trainer.callback_metrics["sft/loss"]),
    }
    held_out = trainer.callback_metrics.get("sft/validation_loss")
    if held_out is None:
        return StageResult(metrics, objective=-metrics["loss"])
    metrics |= {"validation_loss": float(held_out), "validation_perplexity": math.exp(min(float(held_out), 50.0))}
    return StageResult(metrics, objective=-float(held_out))


def _forecast(context: StageContext, source: ModelSource, longest: int) -> None:
    settings = context.settings
    shape = update_shape(settings, context.device, settings.sft.batch_size, settings.sft.micro_batch_size)
    optimizer = context.inputs.make_optimizer
    context.memory.forecast(lambda: sft_footprint(settings, source, optimizer, shape, longest))
