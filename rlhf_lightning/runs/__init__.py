"""From a command line to a finished run: composition, checks before anything is loaded, run directory, pipeline."""
