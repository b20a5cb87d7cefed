"""Constitutions: how they are put together, checked, and turned into what a model is asked. No model here."""
