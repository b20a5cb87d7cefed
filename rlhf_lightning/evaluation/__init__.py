"""Evaluation of policies: figures with intervals, plots, tables. Plain data in, plain data out."""
