"""The `evaluate` verb: accuracies and losses of a model on tasks, with their uncertainty."""
