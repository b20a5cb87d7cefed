"""Feedback from models: critiques and revisions of replies, and judges who say which of two is better."""
