"""Is this run healthy? Findings about a run from what it left behind: figures in, likely causes and overrides out."""
