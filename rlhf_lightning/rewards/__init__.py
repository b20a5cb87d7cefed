"""What scores a completion."""
