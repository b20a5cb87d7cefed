"""The script that sets PPO's memory beside TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from load_script import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmark_memory")


def test_ratios_and_cells(script: ModuleType) -> None:
    row = {"weights_bytes": 2e6, "trainable_parameters": 1e6, "optimizer_bytes": 8e6, "seconds": 3.0}
    ours = {**row, "name": f"ours, {script.SHARED}", "peak_bytes": 50e6}
    trl = {**row, "name": "TRL, full", "peak_bytes": 200e6}
    assert script.ratios([ours, trl]) == {"TRL, full": 0.25}
    assert script.cells(ours)[1:] == ["2 MB", "1.00M", "8 MB", "50 MB", "3"]


@pytest.mark.slow
def test_one_command_leaves_the_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "OURS", [row for row in script.OURS if row.name in ("all weights", script.SHARED)])
    shape = {"batch": 4, "micro_batch": 2, "chunk": 2, "prompt": 8, "reply": 8, "prompts": 8}
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    command = ["benchmark_memory", "--sizes", "tiny", "--no-trl", "--shape", json.dumps(shape), *places]
    monkeypatch.setattr("sys.argv", command)
    assert script.main() == 0
    results = json.loads((tmp_path / "memory.json").read_text())
    rows = results["sizes"]["tiny"]["rows"]
    assert [row["name"] for row in rows] == ["ours, all weights", f"ours, {script.SHARED}"]
    assert all(row["peak_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert (tmp_path / "memory.md").read_text().count("| ours, ") == 2
