"""Checkpoints: written beside the training, whole or not there, readable by any number of ranks."""
