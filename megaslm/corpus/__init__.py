"""Text in: files, the pieces they are read in, and the documents in them."""
