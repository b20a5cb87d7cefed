"""From files, hub datasets and worlds to batches: reading, checking, splitting, encoding and loading records."""
