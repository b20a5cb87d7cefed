"""A run done again: with the code, the config and the environment that it had, and its figures compared."""
