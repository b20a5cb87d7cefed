"""Diagnosis of a run from its logged metrics: likely causes of problems, and overrides that fix them."""
