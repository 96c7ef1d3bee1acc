"""The dataset format: files, manifest and storage. It owns mosaicml-streaming."""
