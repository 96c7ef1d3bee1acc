"""The training verb and what surrounds its loop."""
