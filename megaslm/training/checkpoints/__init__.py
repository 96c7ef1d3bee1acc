"""Checkpoints: written while training goes on, never visible half-written, readable by any number of ranks."""
