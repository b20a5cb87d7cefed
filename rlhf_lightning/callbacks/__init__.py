"""What happens around a training: rollouts, diaries, gradient norms, interruption."""
