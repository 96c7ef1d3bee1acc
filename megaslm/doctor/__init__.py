"""The `doctor` verb: what keeps a machine, or a run on it, from working, and what to do about it."""
