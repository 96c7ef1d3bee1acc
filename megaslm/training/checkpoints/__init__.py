"""Checkpoints: written while training continues, never visible half-written, readable by any number of ranks."""
