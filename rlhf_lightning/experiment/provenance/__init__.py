"""Where a run came from: code, packages, machine, data, models, command."""
