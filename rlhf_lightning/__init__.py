"""A laboratory for aligning language models with human and AI feedback."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rlhf-lightning")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
