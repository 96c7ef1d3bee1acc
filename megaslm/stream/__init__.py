"""Rows out, for training: which are read, in which order, out of shards that were checked."""
