"""The outputs of a run: metrics.jsonl, TensorBoard and the terminal."""
