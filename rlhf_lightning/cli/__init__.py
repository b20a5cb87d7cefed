"""The `rlhf` command. Its modules import no torch: help and config errors answer in about a second."""
