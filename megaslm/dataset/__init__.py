"""The format: a dataset's files, what is written of them, where they lie. It owns mosaicml-streaming."""
