"""Real fits of tiny models for the tests of this folder."""

from fits import assert_same_weights, fit, fit_ppo, stepping

__all__ = ["assert_same_weights", "fit", "fit_ppo", "stepping"]
