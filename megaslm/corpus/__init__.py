"""Text in: files, the ranges they are read in, and the documents in them."""
