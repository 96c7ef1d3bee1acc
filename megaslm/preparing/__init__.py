"""The `prepare` verb: documents to a dataset."""
