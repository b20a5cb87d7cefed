"""What a run does not use it does not import: each process would pay for it again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

UNUSED = ("peft", "wandb", "datasets", "rlhf_lightning.evaluation.plots", "tensorboard", "openai", "bitsandbytes")
"""Without an adapter, W&B, a dataset of the hub, pictures, ...

Lightning imports torchmetrics, torch._dynamo, DTensor and FSDP by itself; torchmetrics, where they are installed,
matplotlib and scipy. So nothing of ours can leave those out.
"""

SCRIPT = """
import json, sys
import rlhf_lightning.experiment.pipeline
imported = sorted(sys.modules)
from rlhf_lightning.cli.main import main
code = main(["train", "debug=tiny", "logger=none", "data.demonstrations=64", "comparisons.held_out_fraction=0.25"])
assert code == 0, code
json.dump({"pipeline": imported, "run": sorted(sys.modules)}, open("modules.json", "w"))
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a fresh interpreter has imported once the pipeline is, and after a whole small run."""
    directory = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=directory, check=True, timeout=500)
    found = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    return {name: set(names) for name, names in found.items()}


@pytest.mark.parametrize("when", ["pipeline", "run"])
def test_nothing_unused_is_imported(modules: dict[str, set[str]], when: str) -> None:
    assert "torch" in modules[when]
    assert modules[when] & set(UNUSED) == set()
