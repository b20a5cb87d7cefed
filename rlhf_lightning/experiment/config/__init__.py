"""The config of a run: composed by Hydra, checked as a whole, and explained where it is wrong."""
