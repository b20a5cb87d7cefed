"""The README.md of an exported model: what it is, what it learned from, how well it does, and where that ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning import __version__
from rlhf_lightning.evaluation.summary import ROWS, Row, short_name, written
from rlhf_lightning.experiment.exported_model import ExportedModel, opening
from rlhf_lightning.experiment.provenance.secrets import redact as redact_text
from rlhf_lightning.settings.stages import TRAINED
from rlhf_lightning.tracking.redaction import redact, redact_override

MADE_BY = {name: model.title for name, model in TRAINED.items()}
STARTS_FROM = {name: model.started_from for name, model in TRAINED.items()}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SYNTHETIC = (
    "**Synthetic.** All data are of the courtesy world: a small artificial language whose texts, comparisons and "
    "true reward are made by a program. No text is by a person, and no figure says anything of a natural language."
)


def model_card(model: ExportedModel) -> str:
    """The card in Markdown, with YAML front matter that the hub reads. Secrets are left out, and markup is escaped."""
    parts = [_front_matter(model), _introduction(model), _how_to_open(model), _data(model), _figures(model)]
    return "\n\n".join([*parts, _config(model), _limits(model), _origin(model)]) + "\n"


def escaped(text: object) -> str:
    """Text that Markdown and HTML read as nothing but text, on one line."""
    return re.sub(r"([\\`*_{}\[\]()#!|<>~&])", r"\\\1", " ".join(redact_text(str(text)).split()))


def fenced(text: str, language: str = "") -> str:
    """A code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def hub_id(name: str | None) -> str | None:
    """A name that can only be one of the hub."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _front_matter(model: ExportedModel) -> str:
    config, data = model.run.config, model.run.config["data"]
    base = hub_id(model.base or config["model"].get("name_or_path"))
    dataset = hub_id(data["name"]) if data["kind"] == "hub" else None
    fields: dict[str, Any] = {
        "library_name": "peft" if model.form == "adapter" else "transformers",
        "pipeline_tag": "text-generation" if model.is_policy else "text-classification",
        "tags": ["rlhf", "rlhf_lightning", model.stage.replace("_", "-"), *([model.method] if model.method else [])],
    }
    if base is not None:
        fields |= {"base_model": base, "base_model_relation": "adapter" if model.form == "adapter" else "finetune"}
    if dataset is not None:
        fields["datasets"] = [dataset]
    if model.is_synthetic:
        fields["tags"].append("synthetic")
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _introduction(model: ExportedModel) -> str:
    config = model.run.config
    name = escaped(config["name"] or short_name(str(model.run.path)))
    lines = [
        f"# {name}: {model.stage.replace('_', ' ')}",
        "",
        f"{MADE_BY[model.stage]}, by rlhf\\_lightning {__version__}.",
    ]
    if model.form == "adapter":
        lines.append(f"These files are an adapter ({model.method}), which needs its base model: {escaped(model.base)}.")
    if model.form == "merged":
        lines.append(f"It was trained as an adapter ({model.method}), which is merged into these weights.")
    lines.append(f"It started from {_start(config, model.stage)}.")
    if config["notes"]:
        lines += ["", escaped(config["notes"])]
    if model.is_synthetic:
        lines += ["", f"> {SYNTHETIC}"]
    return "\n".join(lines)


def _start(config: Mapping[str, Any], stage: str) -> str:
    """The stages below a stage, down to the model that everything starts from."""
    name = config[stage][STARTS_FROM[stage]]
    if name in STARTS_FROM:
        return f"the run's stage {name.replace('_', ' ')}, which started from {_start(config, name)}"
    if name != "base":
        return escaped(name)
    model = config["model"]
    known = {
        "courtesy": "the badly behaved tiny model of the courtesy world, which has read synthetic text only",
        "scratch": "random weights, with a tokenizer trained on the data",
    }
    return known.get(model["kind"]) or escaped(model["name_or_path"])


def _how_to_open(model: ExportedModel) -> str:
    text = f"## Open it\n\n{fenced(opening(model), 'python')}"
    if model.form == "adapter" and model.method == "prompt_tuning":
        text += (
            "\n\nNot in batches that are padded on the left: PEFT's positions count the padding, training's did not."
        )
    if not model.is_policy:
        text += "\n\nThe score is that of the last token: pad on the right, or score one text at a time."
    return text


def _data(model: ExportedModel) -> str:
    data = model.run.config["data"]
    origin = {
        "courtesy": "The courtesy world (see above), generated from the run's seed.",
        "hub": f"The dataset {escaped(data.get('name'))} of the Hugging Face hub, split {escaped(data.get('split'))}.",
        "hh_rlhf": "Anthropic's HH-RLHF (arXiv 2204.05862): crowd workers' conversations, and which reply they chose.",
        "files": "Files of the one who trained it; by name and SHA-256:",
    }[data["kind"]]
    lines = ["## Data", "", origin]
    hashes = (model.run.provenance or {}).get("data", {})
    if hashes:
        lines += ["", *(f"- {escaped(Path(path).name)}: `{digest}`" for path, digest in hashes.items())]
    figures = _stage_figures(model)
    counts = [
        f"{figures[key]} {what}"
        for key, what in (("demonstrations", "demonstrations"), ("training_pairs", "pairs"), ("prompts", "prompts"))
        if key in figures
    ]
    used = f" The stage used {', '.join(counts)}." if counts else ""
    return "\n".join([*lines, "", f"{_by_models(model)}{used}"])


def _by_models(model: ExportedModel) -> str:
    """What of its data models made, by the principles of a constitution."""
    config, none = model.run.config, "There was no written constitution and no AI feedback."
    constitution = config.get("constitution", {})  # runs of earlier versions had none
    if not constitution.get("principles"):
        return none
    below = _below(config, model.stage)
    made = []
    if "critique_revision" in below:
        made.append("replies were critiqued and revised by its principles")
    if "ai_feedback" in below:
        made.append(f"{_judge(config['judge'])} compared replies under it")
    if not made:
        return none
    count = len(constitution["principles"])
    principles = f"{count} principle{'s' if count != 1 else ''}"
    return f"The constitution was {escaped(constitution['name'])} ({principles}): {' and '.join(made)}."


def _below(config: Mapping[str, Any], stage: str) -> set[str]:
    """The stages of the run that a stage builds on, itself included."""
    if stage not in config["pipeline"]["stages"]:
        return set()
    inputs = [name for key, name in config[stage].items() if key.endswith("_from") and isinstance(name, str)]
    return {stage}.union(*(_below(config, name) for name in inputs))


def _judge(judge: Mapping[str, Any]) -> str:
    """Who compared the replies."""
    named = {"self": "model_from", "hub": "name_or_path", "openai": "model"}[judge["kind"]]
    return f"a model ({escaped(judge[named])})"


def _figures(model: ExportedModel) -> str:
    tables = _policy_table(model) if model.is_policy else _reward_model_table(_stage_figures(model))
    lines = list(tables)
    body = (
        ["In brackets: 95% bootstrap intervals over the prompts.", "", *lines] if lines else ["It was not evaluated."]
    )
    return "\n".join(["## Figures", "", *body])


def _policy_table(model: ExportedModel) -> Iterator[str]:
    """A row a figure; a column a split and policy, the one that evaluation measures against first."""
    evaluate = (model.run.metrics or {}).get("evaluate", {})
    start = model.run.config["evaluate"]["reference_from"]
    policies = [policy for policy in dict.fromkeys((start, model.stage)) if policy in evaluate]
    if model.stage not in evaluate:
        return
    columns = [(split, policy) for split in evaluate[model.stage] for policy in policies if split in evaluate[policy]]
    yield f"| | {' | '.join(f'{escaped(split)}: {escaped(policy)}' for split, policy in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in ROWS:
        if any(row.key in evaluate[policy][split] for split, policy in columns):
            cells = (_with_interval(evaluate[policy][split], row) for split, policy in columns)
            yield f"| {row.name} | {' | '.join(cells)} |"


def _reward_model_table(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = (
        Row("accuracy", f"right on {figures.get('pairs')} held-out pairs", "percent"),
        Row("longer_accuracy", "baseline: the longer reply", "percent"),
        Row("shorter_accuracy", "baseline: the shorter reply", "percent"),
        Row("lift", "above the better baseline", "percent"),
        Row("margin", "score of the better reply above the other's", "signed"),
    )
    present = [row for row in rows if row.key in figures]
    if present:
        yield "| | |"
        yield "|---|---|"
    for row in present:
        yield f"| {row.name} | {_with_interval(figures, row)} |"


def _with_interval(figures: Mapping[str, Any], row: Row) -> str:
    value, bounds = figures.get(row.key), figures.get(f"{row.key}_ci")
    if value is None:
        return "-"
    interval = f" [{', '.join(written(bound, row.style) for bound in bounds)}]" if bounds else ""
    return written(value, row.style) + interval


def _config(model: ExportedModel) -> str:
    """The config without the places of the machine it ran on."""
    shown = {key: value for key, value in model.run.config.items() if key not in ("paths", "resume")}
    text = yaml.safe_dump(_redacted(redact(shown)), sort_keys=False, allow_unicode=True)
    return f"## Config\n\n{fenced(text, 'yaml')}"


def _redacted(value: Any) -> Any:
    """Plain containers whose free text (notes, say) has no secrets in it either."""
    if isinstance(value, Mapping):
        return {name: _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return redact_text(value) if isinstance(value, str) else value


def _limits(model: ExportedModel) -> str:
    figures = _stage_figures(model)
    limits = []
    if model.is_synthetic:
        limits.append(
            "It speaks the courtesy world's artificial language only. It is for the study of RLHF, not for use."
        )
    if model.is_policy:
        limits.append("Nothing but the figures above was measured. Its replies can be wrong, rude or harmful.")
    else:
        limits.append(
            "It scores replies like those it was trained on; a policy that is optimised against it finds others."
        )
    if "accuracy" in figures and figures.get("lift_ci", [1.0])[0] <= 0.0:
        limits.append("It does not beat the better of two trivial baselines, the longer and the shorter reply.")
    limits.append("One seed. The intervals cover the choice of prompts, not that of another training.")
    if model.run.status.state != "finished":
        limits.append(f"The run is {model.run.status.state}: what came after this stage is missing from the figures.")
    limits.append("The licences of the base model and of the data hold for this model too.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


def _origin(model: ExportedModel) -> str:
    provenance = model.run.provenance
    if provenance is None:
        return "## Origin\n\nThe run left no record of where it came from."
    git = provenance["git"]
    commit = f", commit {git['commit']}{' with uncommitted changes' if git['dirty'] else ''}" if git else ""
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    command = " ".join(["rlhf train", *(redact_override(override) for override in provenance["overrides"])])
    return "\n".join(
        [
            "## Origin",
            "",
            f"Started {provenance['started']}, rlhf\\_lightning {provenance['rlhf_lightning']}{commit}.",
            f"Packages: {escaped(packages)}.",
            "",
            fenced(redact_text(command)),
        ]
    )


def _stage_figures(model: ExportedModel) -> Mapping[str, Any]:
    stages: Mapping[str, Mapping[str, Any]] = (model.run.metrics or {}).get("stages", {})
    return stages.get(model.stage, {})
