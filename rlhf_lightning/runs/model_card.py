"""The README.md of an exported model (description, training data, figures, limits) and the code that opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf_lightning import __version__
from rlhf_lightning.evaluation.summary import ROWS, Row, short_name, written
from rlhf_lightning.sections import instances_of
from rlhf_lightning.stages.declaration import TrainedModel
from rlhf_lightning.stages.plugins import trained_models
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.redaction import redact, redact_override, redact_text
from rlhf_lightning.worlds import courtesy

Form = Literal["whole", "adapter", "merged"]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A stage's model as it leaves its run.

    Attributes:
        run: that made the model, with its config, figures and origin.
        chats: whether its tokenizer has a chat template.
        base: the directory or hub id that an adapter belongs to; None for a model that is no adapter.
        method: the kind of adapter, as `peft.kind` names it.
    """

    run: RunDirectory
    stage: str
    form: Form
    chats: bool
    base: str | None = None
    method: str | None = None

    @property
    def trained(self) -> TrainedModel:
        """The declaration of the model by its stage."""
        return trained_models(self.run.config)[self.stage]

    @property
    def is_policy(self) -> bool:
        return self.trained.head == "policy"

    @property
    def is_synthetic(self) -> bool:
        """True if the model was trained on the courtesy world alone."""
        return bool(self.run.config["data"]["kind"] == "courtesy")


def opening(model: ExportedModel) -> str:
    """Python code that opens the model in the working directory with Transformers (and PEFT), and runs an example."""
    auto = f"{'AutoPeftModel' if model.form == 'adapter' else 'AutoModel'}{_head(model)}"
    from_transformers = ["AutoTokenizer"] if model.form == "adapter" else [auto, "AutoTokenizer"]
    prompt, response = _example(model)
    lines = [
        *([f"from peft import {auto}"] if model.form == "adapter" else []),
        f"from transformers import {', '.join(from_transformers)}",
        "",
        'here = "."  # this directory',
        f"model = {auto}.from_pretrained(here{_outputs(model)})",
        "tokenizer = AutoTokenizer.from_pretrained(here)",
        *(_as_chat(prompt) if model.chats else [f"prompt = {prompt!r}"]),
    ]
    if model.is_policy:
        lines += [
            'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64, do_sample=True, top_k=0)[0]))",
        ]
    else:
        lines += [
            f"text = prompt + {response!r} + tokenizer.eos_token",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
            "print(model(**inputs).logits)",
        ]
    return "\n".join(lines)


def _head(model: ExportedModel) -> str:
    return "ForCausalLM" if model.is_policy else "ForSequenceClassification"


def _outputs(model: ExportedModel) -> str:
    """The `num_labels` argument of a reward model's adapter, whose base does not define it."""
    if model.is_policy or model.form != "adapter":
        return ""
    return f", num_labels={1 if model.run.config[model.stage]['head'] == 'scalar' else 2}"


def _as_chat(prompt: str) -> list[str]:
    return [
        f'chat = [{{"role": "user", "content": {prompt!r}}}]',
        "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)",
    ]


def _example(model: ExportedModel) -> tuple[str, str]:
    """A prompt and a response that the model can read."""
    if not model.is_synthetic:
        return "Name a prime number.", " Seven."
    prompt = courtesy.prompts("validation")[0].last_turn
    return prompt, courtesy.best_response(prompt)


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
REWARD_MODEL_ROWS = (
    Row("accuracy", "accuracy", "percent"),
    Row("longer_accuracy", "baseline: the longer response", "percent"),
    Row("shorter_accuracy", "baseline: the shorter response", "percent"),
    Row("lift", "above the better baseline", "percent"),
    Row("margin", "score of the better response above the other's", "signed"),
)
Column = tuple[str, str, Mapping[str, Any]]
"""A split, what was evaluated on it, and the figures by `Row.key`."""


def model_card(model: ExportedModel) -> str:
    """The card in Markdown, with YAML front matter that the hub reads. Secrets are left out, and markup is escaped."""
    config, provenance = model.run.config, model.run.provenance
    name = config["name"] or short_name(str(model.run.path))
    figures = (model.run.metrics or {}).get("stages", {}).get(model.stage, {})
    columns, rows = _columns(model, figures), ROWS if model.is_policy else REWARD_MODEL_ROWS
    constitution = config.get("constitution", {"principles": []})  # runs of earlier versions had none
    body = TEMPLATES.get_template("model_card.md.jinja").render(
        model=model,
        config=config,
        name=name,
        version=__version__,
        title=model.trained.title,
        start=_start(config, model.stage),
        constitution=constitution,
        below=_below(config, model.stage) if constitution["principles"] else (),
        code=fenced(opening(model), "python"),
        figures=figures,
        table=_table(columns, rows),
        settings=fenced(_settings(config), "yaml"),
        provenance=provenance,
        records=_records(config, (provenance or {}).get("stages", {})),
        command=fenced(_command(provenance)) if provenance else None,
    )
    data = _front_matter(model, name, columns, rows)
    return str(ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}\n", body=body))


def escaped(text: object) -> Markup:
    """Text on one line, without secrets, escaped for Markdown and HTML; `Markup` is returned as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(re.sub(r"([\\`*_{}\[\]()#!|<>~&])", r"\\\1", " ".join(redact_text(str(text)).split())))


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=True,
    finalize=escaped,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Whatever a template prints is escaped, unless it is `Markup`."""


def fenced(text: str, language: str = "") -> Markup:
    """A code block whose fence does not occur in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def hub_id(name: str | None) -> str | None:
    """The name if it can only be a hub id; None otherwise."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _records(config: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files and directories that the run's records come from, by path."""
    named = {key: identity for stage in stages.values() for key, identity in stage["data"].items()}
    contents = {key: identity.removeprefix("content ") for key, identity in named.items() if " " in identity}
    return {str(config["data"][key]): digest for key, digest in contents.items()}


def _front_matter(model: ExportedModel, name: str, columns: Sequence[Column], rows: Sequence[Row]) -> ModelCardData:
    config, data = model.run.config, model.run.config["data"]
    base = hub_id(model.base or config["model"].get("name_or_path"))
    dataset = hub_id(data["name"]) if data["kind"] == "hub" else None
    task = "text-generation" if model.is_policy else "text-classification"
    origin = dataset or data["kind"]
    results = [
        EvalResult(task, origin, origin, row.key, value, dataset_split=split, metric_name=row.name)
        for split, evaluated, figures in columns
        for row in rows
        if evaluated == model.stage and (value := figures.get(row.key)) is not None
    ]
    tags = ["rlhf", "rlhf_lightning", model.stage.replace("_", "-"), model.method, "synthetic" * model.is_synthetic]
    return ModelCardData(
        library_name="peft" if model.form == "adapter" else "transformers",
        pipeline_tag=task,
        tags=[tag for tag in tags if tag],
        base_model=base,
        base_model_relation=base and ("adapter" if model.form == "adapter" else "finetune"),
        datasets=dataset and [dataset],
        model_name=redact_text(name) if results else None,
        eval_results=results or None,
    )


def _start(config: Mapping[str, Any], stage: str) -> str:
    """The stages below a stage, down to the base model."""
    trained = trained_models(config)
    name = config[stage][trained[stage].started_from]
    if name in trained:
        return f"the run's stage {name.replace('_', ' ')}, which started from {_start(config, name)}"
    if name != "base":
        return str(name)
    model = config["model"]
    known = {
        "courtesy": "the badly behaved tiny model of the courtesy world, which has read synthetic text only",
        "scratch": "random weights, with a tokenizer trained on the data",
    }
    return known.get(model["kind"]) or str(model["name_or_path"])


def _below(config: Mapping[str, Any], stage: str) -> set[str]:
    """The stages of the run that a stage builds on, itself included."""
    if stage not in dict(instances_of(config)):
        return set()
    inputs = [name for key, name in config[stage].items() if key.endswith("_from") and isinstance(name, str)]
    return {stage}.union(*(_below(config, name) for name in inputs))


def _columns(model: ExportedModel, stage_figures: Mapping[str, Any]) -> list[Column]:
    """The model's figures; on each split, those of a policy follow those of the policy that it is compared with."""
    if not model.is_policy:
        return [("held-out pairs", model.stage, stage_figures)]
    evaluate = (model.run.metrics or {}).get("evaluate", {})
    policies = dict.fromkeys((model.run.config["evaluate"]["reference_from"], model.stage))
    return [
        (split, policy, evaluate[policy][split])
        for split in evaluate.get(model.stage, ())
        for policy in policies
        if split in evaluate.get(policy, ())
    ]


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Markup:
    """A table with one row per figure; empty without figures."""
    lines = [
        ["", *(f"{escaped(split)}: {escaped(evaluated)}" for split, evaluated, _ in columns)],
        ["---"] * (len(columns) + 1),
    ]
    for row in rows:
        if any(row.key in figures for *_, figures in columns):
            lines.append([row.name, *(_with_interval(figures, row) for *_, figures in columns)])
    return Markup("\n".join(f"| {' | '.join(cells)} |" for cells in lines) if len(lines) > 2 else "")


def _with_interval(figures: Mapping[str, Any], row: Row) -> str:
    value, bounds = figures.get(row.key), figures.get(f"{row.key}_ci")
    if value is None:
        return "-"
    interval = f" [{', '.join(written(bound, row.style) for bound in bounds)}]" if bounds else ""
    return written(value, row.style) + interval


def _settings(config: Mapping[str, Any]) -> str:
    """The config without paths of the machine it ran on, and without secrets, by key and in free text."""
    shown = {key: value for key, value in config.items() if key not in ("paths", "resume")}
    return yaml.safe_dump(_redacted(redact(shown)), sort_keys=False, allow_unicode=True)


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return redact_text(value) if isinstance(value, str) else value


def _command(provenance: Mapping[str, Any]) -> str:
    return redact_text(" ".join(["rlhf train", *map(redact_override, provenance["overrides"])]))
