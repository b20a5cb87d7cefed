"""Memory of a run's stages: weights, gradients and optimizer state counted, the peak measured, lack of it explained."""
