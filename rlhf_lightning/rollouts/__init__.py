"""Rollout phase of PPO: the policy answers prompts, and all that the update needs is recorded."""
