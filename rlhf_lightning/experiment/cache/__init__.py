"""The stage cache: what a stage leaves, kept under a key of everything that decides it, for whoever needs it next."""
