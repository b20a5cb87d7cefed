"""Training callbacks: rollouts, sample logs, gradient norms, interruption."""
