"""Object storage and other remote files, read through fsspec."""
