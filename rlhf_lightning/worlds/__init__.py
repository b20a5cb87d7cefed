"""Embedded worlds: small languages whose true reward is known."""
