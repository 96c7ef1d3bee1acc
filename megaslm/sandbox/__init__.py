"""Runs programs that a model wrote, each apart from this machine and from the others."""
