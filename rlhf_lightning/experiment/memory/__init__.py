"""What the stages of a run hold in memory: forecast from shapes, measured, and what needs less when it is too much."""
