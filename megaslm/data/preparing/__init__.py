"""Documents to a dataset: tasks, packing, parts."""
