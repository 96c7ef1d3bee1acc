"""The outputs of a run: metrics.jsonl, TensorBoard, experiment trackers and the terminal."""
