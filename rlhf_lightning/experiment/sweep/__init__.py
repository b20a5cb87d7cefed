"""Sweeps: jobs that run as processes of their own, and can be resumed."""
