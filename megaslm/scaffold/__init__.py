"""The `init` verb: a first recipe and first runs for a model and text of one's own."""
