"""Repeat a run with its code, config and environment, and compare the figures."""
