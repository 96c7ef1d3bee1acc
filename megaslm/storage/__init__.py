"""Object storage and other remote files. It owns fsspec."""
