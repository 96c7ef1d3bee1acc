"""Reads rows for training: which rows, in which order, from checked shards."""
