"""The folders whose tests are slow, and the fixtures of all tests (`builders.py`)."""

from __future__ import annotations

import gc
import importlib
import os

import pytest

pytest_plugins = ["budget"]

SLOW = (
    *("cli", "conformance", "distributed", "end_to_end"),
    *("test_cache_keys.py", "test_conf.py", "test_export.py", "test_packaging.py", "test_preflight.py"),
    *("test_readme.py", "test_report_in_browser.py"),
)
"""Folders and files whose tests are slow, all of them: whole runs, commands, processes, every key or every command."""

WITHOUT_TORCH = ("sympy", "scipy.stats", "datasets", "matplotlib.image", "wandb", "hypothesis")
"""The larger libraries that the tests import and that do not import torch."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW or item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, which bring torch, where tests run: not in the process that only hands them to workers."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    # What is imported stays: the garbage collector would go through it again and again, a tenth of the whole time.
    gc.disable()
    # First of all: for the docstrings of the fields, pydantic searches all modules that are loaded.
    importlib.import_module("rlhf_lightning.stages.run_settings")
    # In a new environment nothing is compiled yet. Of two workers, each compiles one half and reads the other.
    if int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 2:
        for library in WITHOUT_TORCH:
            importlib.import_module(library)
    config.pluginmanager.import_plugin("builders")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
