"""The `prepare` verb: makes a dataset of documents."""
