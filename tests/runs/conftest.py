"""Finished runs that nobody ran."""

from finished_runs import checkout, composed, finished_run, git, write_options

__all__ = ["checkout", "composed", "finished_run", "git", "write_options"]
