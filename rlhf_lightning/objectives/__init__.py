"""Pure tensor functions: the mathematics of preference learning and PPO, with no framework in sight."""
