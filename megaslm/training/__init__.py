"""The `train` verb: the training loop and everything around it."""
