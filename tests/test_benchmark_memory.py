"""The script that sets PPO's memory beside TRL's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from load_script import load_script

from rlhf_lightning.cli.main import main


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmark_memory")


def test_ratios_and_cells(script: ModuleType) -> None:
    row = {"weights_bytes": 2e6, "trainable_parameters": 1e6, "optimizer_bytes": 8e6, "seconds": 3.0}
    ours = {**row, "name": f"ours, {script.SHARED}", "peak_bytes": 50e6}
    trl = {**row, "name": "TRL, full", "peak_bytes": 200e6}
    assert script.ratios([ours, trl]) == {"TRL, full": 0.25}
    assert script.cells(ours)[1:] == ["2 MB", "1.00M", "8 MB", "50 MB", "3"]


def test_the_peak_of_a_command_is_its_own(script: ModuleType) -> None:
    # At least that of this process, with which it begins: so it takes more.
    fill = "import os; bytearray(int(os.environ['SIZE']))"
    peak, seconds = script.run([sys.executable, "-c", fill], {"SIZE": "1000000000"})
    assert 1.0e9 < peak < 1.5e9
    assert seconds > 0
    with pytest.raises(SystemExit, match="no luck\n\nfailed with 1"):
        script.run([sys.executable, "-c", "raise SystemExit('no luck')"], {})


@pytest.mark.slow
def test_one_command_leaves_the_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_here(command: list[str], _: dict[str, str]) -> tuple[int, float]:
        """The commands of its rows, without interpreters of their own."""
        if command[1] == script.__file__:
            with monkeypatch.context() as patch:
                patch.setattr("sys.argv", command[1:])
                assert script.main() == 0
        else:
            assert command[:3] == [sys.executable, "-m", "rlhf_lightning"]
            assert main(command[3:]) == 0
        return 123456789, 7.0

    monkeypatch.setattr(script, "run", run_here)
    monkeypatch.setattr(script, "OURS", [row for row in script.OURS if row.name in ("all weights", script.SHARED)])
    shape = {"batch": 4, "micro_batch": 2, "chunk": 2, "prompt": 8, "response": 4, "prompts": 8, "iterations": 1}
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    command = ["benchmark_memory", "--sizes", "tiny", "--no-trl", "--shape", json.dumps(shape), *places]
    monkeypatch.setattr("sys.argv", command)
    assert script.main() == 0
    whole, lora = json.loads((tmp_path / "memory.json").read_text())["sizes"]["tiny"]["rows"]
    assert (whole["name"], lora["name"]) == ("ours, all weights", f"ours, {script.SHARED}")
    assert whole["trainable_parameters"] > lora["trainable_parameters"] > 0
    assert whole["weights_bytes"] > lora["weights_bytes"] > 0
    assert (lora["peak_bytes"], lora["seconds"]) == (123456789, 7.0)
    assert (tmp_path / "memory.md").read_text().count("| ours, ") == 2
