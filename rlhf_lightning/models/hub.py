"""Location of a model: a local directory, the hub's cache, or the hub, determined in seconds without retries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from huggingface_hub import constants, try_to_load_from_cache

from rlhf_lightning.errors import ArtifactError, ModelError

ADAPTER_CONFIG_NAME = "adapter_config.json"
"""PEFT's, which marks a directory as an adapter's; asking PEFT or Transformers for the name would import them."""

PROBE_SECONDS = 4.0
"""Timeout for the hub to answer before it counts as unreachable."""


@dataclass(frozen=True)
class ModelSource:
    """Model to load, and options of loading it.

    Attributes:
        name_or_path: a local directory or a hub id.
        dtype: of the weights, e.g. `float32`.
        chat_template: a Jinja file that replaces the tokenizer's chat template.
        base: replaces an adapter's base that is not at its recorded location.
        quantization: 4-bit data type of the weights; None: no quantization.
        double_quantization: also quantize the quantization's own constants.
    """

    name_or_path: str
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    base: ModelSource | None = None
    quantization: Literal["nf4", "fp4"] | None = None
    double_quantization: bool = True

    @property
    def is_local(self) -> bool:
        return Path(self.name_or_path).is_dir()

    def loading_arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`: safe, and offline where the hub is out of reach.

        Raises:
            ModelError: neither a directory, nor in the cache, nor reachable.
        """
        arguments: dict[str, Any] = {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}
        if self.is_local:
            return {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        # A hub id is `name` or `owner/name`.
        if self.name_or_path.startswith((".", "~", "/")) or self.name_or_path.count("/") > 1:
            raise ModelError(
                "No such model directory.", where=self.name_or_path, fix="check the path, or give a hub id (owner/name)"
            )
        if hub_is_reachable():
            return arguments
        if isinstance(try_to_load_from_cache(self.name_or_path, "config.json", revision=self.revision), str):
            return {**arguments, "local_files_only": True}
        raise ModelError(
            f"Model {self.name_or_path!r} is not in the local cache and the hub cannot be reached.",
            where=f"cache {constants.HF_HUB_CACHE}, hub {constants.ENDPOINT}",
            fix="connect to the network, download the model elsewhere and give its directory as "
            "model.name_or_path, or work without a hub: model=courtesy or model=scratch",
        )


def is_adapter(directory: Path) -> bool:
    """True if a directory holds an adapter rather than a full model."""
    return (directory / ADAPTER_CONFIG_NAME).is_file()


def hub_is_reachable() -> bool:
    """True if the hub answers within `PROBE_SECONDS` (False at once in offline mode)."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return True


def read_architectures(directory: Path) -> list[str]:
    """The model classes that a local directory's config.json names.

    Raises:
        ArtifactError: there is no readable config.json.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architectures = config.get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            "Not a model directory: its config.json cannot be read.",
            where=str(path),
            fix="name a directory written by save_pretrained, or by a stage of rlhf train",
        ) from error
    return list(architectures) if architectures else []
