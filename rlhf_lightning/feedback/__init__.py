"""Feedback from models: critiques and revisions of responses, and judges who say which of two is better."""
