"""Provenance of a run: code, packages, machine, data, models, command."""
