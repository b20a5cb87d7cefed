"""Memory of a run's stages: static memory counted, the peak measured, out-of-memory errors explained."""
