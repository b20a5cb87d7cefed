"""Reward functions: scores of completions."""
