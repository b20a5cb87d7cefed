"""The folders whose tests are slow, and the fixtures of all tests (`builders.py`)."""

from __future__ import annotations

import pytest

pytest_plugins = ["budget"]

SLOW = (
    *("cli", "conformance", "distributed", "end_to_end"),
    *("test_cache_keys.py", "test_conf.py", "test_export.py", "test_packaging.py", "test_preflight.py"),
    *("test_readme.py", "test_report_in_browser.py"),
)
"""Folders and files whose tests are slow, all of them: whole runs, commands, processes, every key or every command."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW or item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, which bring torch, where tests run: not in the process that only hands them to workers."""
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("builders")
