"""Sweeps: jobs that are known before they start, run as processes of their own, and can be taken up again."""
