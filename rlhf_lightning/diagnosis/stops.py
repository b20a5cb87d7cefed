"""Findings about runs that ended early, and metrics that became NaN or infinite."""

from __future__ import annotations

from rlhf_lightning.diagnosis.finding import Finding, Severity, override
from rlhf_lightning.diagnosis.run_record import RunRecord

SHOWN = 4
"""Figures that are named where many are not finite."""


def failed(record: RunRecord) -> Finding | None:
    """The run stopped with an error, which says what to do."""
    if record.state != "failed" or record.error is None:
        return None
    return Finding(
        name="failed",
        severity=Severity.SERIOUS,
        title=f"the run failed in stage {record.stage}" if record.stage else "the run failed",
        evidence=tuple(record.error.splitlines()),
        explanation="The error above is the run's own account; run.log and error.log in the run directory say more.",
    )


def cut_short(record: RunRecord) -> Finding | None:
    """The run was interrupted, or its process ended without a status."""
    if record.state == "interrupted":
        how = f"interrupted in stage {record.stage}"
    elif record.state == "running" and not record.alive:
        how = f"status.json says that it runs stage {record.stage}, but on this machine its process is gone"
    else:
        return None
    return Finding(
        name="cut_short",
        severity=Severity.NOTE,
        title="the run did not reach its end",
        evidence=(how,),
        explanation="What follows is about the part that was run. `rlhf train resume=RUN_DIR` continues it.",
    )


def not_finite(record: RunRecord) -> Finding | None:
    """A figure became NaN or infinite."""
    broken = record.not_finite
    if not broken:
        return None
    row, iteration = broken[0]
    when = f"iteration {iteration}" if iteration is not None else f"optimizer step {row.step}"
    names = list(dict.fromkeys(other.name for other, _ in broken))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    rate = record.number(f"{row.stage}.learning_rate")
    return Finding(
        name="not_finite",
        severity=Severity.SERIOUS,
        title="figures are not finite",
        evidence=(f"stage {row.stage}, first at {when}: {', '.join(names[:SHOWN])}{more}",),
        explanation=(
            "A loss or weight overflowed, or was divided by zero. Most often the learning rate is too high, or 16-bit "
            "precision ran out of range; checkpoints/STAGE/diverged_batch.safetensors holds the batch that did it."
        ),
        overrides=(override(f"{row.stage}.learning_rate", rate / 10),) if rate else (),
    )
