"""Phase one of PPO: the policy answers prompts, and everything that the update needs is written down."""
