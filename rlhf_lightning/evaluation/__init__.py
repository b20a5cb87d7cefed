"""What became of a policy: figures with intervals, plots, tables. Plain data in, plain data out."""
