"""An exported model, and the Python code that opens it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.stages.declaration import TrainedModel
from rlhf_lightning.stages.plugins import trained_models
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
    prompt, reply = _example(model)
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
            f"text = prompt + {reply!r} + tokenizer.eos_token",
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
    """A prompt and a reply that the model can read."""
    if not model.is_synthetic:
        return "Name a prime number.", " Seven."
    prompt = courtesy.prompts("validation")[0].last_turn
    return prompt, courtesy.best_reply(prompt)
