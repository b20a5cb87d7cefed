"""Pure tensor functions: the objectives of preference learning and PPO, independent of any framework."""
