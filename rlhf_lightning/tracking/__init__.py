"""Experiment tracking: the history file of every run, W&B, TensorBoard, and the names of runs."""
